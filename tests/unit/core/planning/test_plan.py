"""Plans of tiny models against the models themselves."""

import pytest
import torch

from pasto_cli.core.models.configuration import BaseFiles
from pasto_cli.core.models.residual_writers import find_writers
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.planning.planner import Known, Planner, Target
from pasto_cli.core.planning.remedies import remedies
from pasto_cli.core.planning.sizes import CONTEXT, Kind, weight_bytes
from pasto_cli.core.planning.words import word_chat
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis

FLOAT = Kind("cuda", torch.float32, low=False)
"""A device whose bytes are the tensors' alone."""


def known(lm, pairs, **sections):
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": lm.spec.model_dump(),
            "pairs": {"words": ["honest", "dishonest"]},
            "adapter": {"rank": 12},
            "training": {"batch_size": 2},
            **sections,
        }
    )
    files = BaseFiles(lm.model.config, "here", 0, 0)
    return Known(recipe, files, lm.chat, pairs, 1, anchors=3)


@pytest.fixture(scope="module")
def planner(tiny, tiny_pairs):
    return Planner(known(tiny(), tiny_pairs[:4]))


def test_the_stage_is_the_model_and_its_adapter(planner, tiny, make_adapter):
    lm = tiny()
    stage = planner.stage(planner.known.recipe, FLOAT)
    assert weight_bytes(stage, "none") == sum(p.numel() * 4 for p in lm.model.parameters())
    assert [w.path for w in stage.writers] == [w.path for w in find_writers(lm.model)]
    real = make_adapter(lm)  # rank 12 on the same modules
    assert stage.adapter.paths == real.paths
    assert stage.adapter.num_parameters() == real.num_parameters()


def test_a_rehearsal_counts_nodes_and_kept_base_sides_as_they_are(planner, tiny, tiny_pairs):
    run = planner.run(planner.known.recipe, FLOAT)
    lm, recipe = tiny(), planner.known.recipe
    objective = Objective(
        lm,
        random_basis(lm.hidden_size, 4, 0).columns,
        recipe.losses,
        recipe.subspace,
        budget=512,
        cache_mb=0,
    )
    base = objective._base_pairs(tiny_pairs[:4])
    sizes = [pair.size for pair in base]
    assert min(sizes) <= run.pair <= 1.2 * max(sizes)
    trees = [
        pack([side for pair in two for side in pair[:3]]).num_nodes
        for two in ([a, b] for a in tiny_pairs[:4] for b in tiny_pairs[:4] if a is not b)
    ]
    assert min(trees) <= run.nodes <= max(trees) and run.passes == 1
    assert run.step > 0 and run.operations > 0


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_as_small_as_it_is_loaded(tiny, planner, bits):
    loaded = tiny(f"llama-{bits}").model.get_memory_footprint()
    planned = weight_bytes(planner.stage(planner.known.recipe, FLOAT), bits)
    assert planned == pytest.approx(loaded, rel=0.1)


def test_what_does_not_fit_gets_remedies_that_were_tried(planner):
    recipe = planner.known.recipe
    peak = planner.device(recipe, Target("a GPU", FLOAT, None, None)).peak
    tight = Target("a GPU", FLOAT, CONTEXT + int(0.9 * peak), None)
    assert planner.device(recipe, tight).fits is False
    assert planner.device(recipe, tight._replace(memory=CONTEXT + peak)).fits
    found = remedies(planner, tight)
    assert found and all(remedy.peak < peak for remedy in found)
    assert any(remedy.fits for remedy in found)
    # It has two pairs per batch and rank 12 already.
    named = {key.partition("=")[0] for remedy in found for key in remedy.settings}
    assert named <= {"training.node_budget", "model.dtype", "model.quantization"}


def test_words_stand_in_for_a_tokenizer():
    chat = word_chat(None)
    prompt = chat.prompt("Say what you think.")
    row = chat.continued("Say what you think.", "Well, I")
    assert row[: len(prompt)] == prompt and len(row) == len(prompt) + 3
