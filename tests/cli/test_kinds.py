"""A dial of the linear kind through every verb, and what its recipe may not hold."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.core.training import trainer
from pasto_cli.workflows import dials, progress
from tests.support.terminal import OWN, SHORT, TINY, Finished, call_in

LINEAR = ("--set", "adapter.kind=lora")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One finished run of the kind lora; nothing may change it."""
    root = tmp_path_factory.mktemp("linear")
    said = call_in(root, "train", TINY, *SHORT, *LINEAR)
    assert said.code in (0, 1), said.err
    return Finished(root, (root / "runs" / "latest").resolve(), said)


@pytest.fixture()
def linear(made, tmp_path):
    """A copy of it, in the folder where `pasto` works."""
    shutil.copytree(made.root / "runs", tmp_path / "runs", symlinks=True)
    return Finished(tmp_path, tmp_path / "runs" / made.run.name, made.said)


def test_a_trained_one_says_nothing_of_angles(linear):
    meta = json.loads((linear.run / "adapter" / "pasto.json").read_text())
    assert meta["kind"] == meta["recipe"]["adapter"]["kind"] == "lora"
    assert meta["bound"] is None and meta["max_angle"] is None and meta["largest_angle"] is None
    assert "angle" not in meta["training"] and "bound" not in meta["recipe"]["adapter"]
    assert "prompt-equivalent" in linear.said.out
    card = (linear.run / "adapter" / "README.md").read_text()
    for text in (linear.said.out, card):
        assert "rotation" not in text and "degrees" not in text and "None" not in text
    assert "kind `lora`" in card and "enters linearly" in card
    assert "Method: a LoRA with the losses of AntiPaSTO" in card
    tensors = load_file(linear.run / "adapter" / "adapter.safetensors")
    assert {name.rpartition(".")[2] for name in tensors} == {"a", "b"}
    b = torch.cat([x.flatten() for name, x in tensors.items() if name.endswith(".b")])
    assert b.std() > 1e-3  # it started at 1e-4


def test_a_stopped_training_goes_on_to_the_same_bytes(pasto, made, tmp_path, monkeypatch):
    real = trainer._Loop._step

    def step(self, epoch, group):
        if self.step == 3:
            raise KeyboardInterrupt
        real(self, epoch, group)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
        patch.setattr(trainer._Loop, "_step", step)
        assert pasto("train", TINY, *SHORT, *LINEAR).code == 130
    (run,) = (tmp_path / "runs").iterdir()
    said = pasto("train", "--resume", run)
    assert said.code == made.said.code and "going on after step 3" in said.err
    found, expected = (r / "adapter" / "adapter.safetensors" for r in (run, made.run))
    assert found.read_bytes() == expected.read_bytes()


def test_it_is_verified_measured_reported_and_published(pasto, linear):
    found = json.loads(pasto("verify", "--json").out)
    assert found["hashed"] and found["same_bytes"] and max(found["differences"].values()) < 1e-3
    said = pasto("verify", "--quantization", "8bit")
    assert said.code == 0 and "by the reference logits only (another precision" in said.out
    (linear.root / "own.yaml").write_text(OWN)
    baseline = ("--baseline", "random-rotation")
    said = pasto("eval", "-b", "own.yaml", "--value", "candour", *baseline)
    assert said.code == 0, said.err
    assert pasto("report", "--samples", "0").code == 0
    page = (linear.run / "report.html").read_text()
    assert "kind lora, linear in the coefficient" in page and "largest rotation" not in page
    said = pasto("push", "me/dial", "--dry-run")
    assert said.code == 0 and "kind `lora`" in said.out and "degrees" not in said.out


def test_one_exported_lora_serves_every_coefficient(pasto, linear):
    said = pasto("export", "--coeff", "1", "--coeff", "-0.5", "--format", "lora")
    assert said.code == 0, said.err
    folder = linear.run / "export"
    facts = json.loads((folder / "lora-plus1.00" / "pasto_export.json").read_text())
    assert facts["dials"][0]["kind"] == "lora"
    whole, half = (
        load_file(folder / name / "adapter_model.safetensors")
        for name in ("lora-plus1.00", "lora-minus0.50")
    )
    for name, x in whole.items():
        scale = -0.5 if "lora_B" in name else 1.0
        assert torch.equal(half[name], scale * x)
    dial = dials.open_dial(str(linear.run), progress.Silent(), packing=False)
    ids = torch.tensor([dial.lm.chat.prompt("Hello")])
    with torch.no_grad():
        with dial.steerer.at(-0.5):
            expected = dial.lm.model(input_ids=ids).logits
        model = peft.PeftModel.from_pretrained(dial.lm.model, folder / "lora-minus0.50")
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def test_it_generates_and_stands_beside_a_rotation(pasto, linear, trained):
    said = pasto("generate", "--coeff", "0", "--coeff", "1", "--max-new-tokens", "3", "Hello.")
    assert said.code == 0, said.err
    mixed = (f"{linear.run}:+1", f"{trained.run}:-0.5")
    command = ("-a", mixed[0], "-a", mixed[1], "--max-new-tokens", "3", "Hello.")
    assert pasto("generate", *command).code == 0
    said = pasto("export", "-a", mixed[0], "-a", mixed[1], "--out", "mix", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)[0]["difference"] < 1e-3


@pytest.mark.parametrize("key", ["bound=spectral", "max_angle=45", "init_theta_std=0.01"])
def test_a_bound_is_refused_before_anything_is_loaded(pasto, tmp_path, key):
    said = pasto("train", TINY, *LINEAR, "--set", f"adapter.{key}")
    name = key.partition("=")[0]
    assert said.code == 1 and f"rotates nothing and has no {name}; take that out" in said.error
    assert said.next_step and not (tmp_path / "runs").exists()
