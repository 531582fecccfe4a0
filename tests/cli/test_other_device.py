"""The life of a dial on another device than the CPU, over two devices, and with layers on disk.

A tensor that is made on the wrong device ends it, as it would on a GPU. The operations are the
CPU's own but for attention, which torch takes apart there, so that what comes out has to be the
same but for rounding (`tests.support.elsewhere`)."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from pasto_cli.core.models.loading import load_model
from pasto_cli.core.models.spread import spread_out
from pasto_cli.workflows import dials
from tests.support.elsewhere import split
from tests.support.runs import CANDOUR
from tests.support.terminal import OWN, ROOT, TINY, Said, call_in, strict

SMALL = (
    "training.epochs=1",
    "training.batch_size=8",
    "pairs.count=12",
    "adapter.max_modules=4",
    "losses.anchor={count: 2, tokens: 2, prompts: anchors.txt}",
    "evaluation.benchmark=sentiment",
    # A processor may run layers in bfloat16, and "elsewhere" knows no kernels for it.
    "training.precision=float32",
    "evaluation.precision=float32",
)
SETTINGS = [x for key in SMALL for x in ("--set", key)]
ANCHORS = "".join(f"What is {n} plus {n}?\n" for n in range(8))
VERBS = {
    "eval": (*CANDOUR, "--baseline", "control-vector", "--baseline", "random-rotation"),
    "generate": ("Hello.", "-c", "-1", "-c", "0.5", "--max-new-tokens", "3"),
    "generate sampled": ("Hello.", "--temperature", "0.7", "--max-new-tokens", "3"),
    "export": ("--coeff", "1", "--format", "lora", "--force"),
    "verify": (),
}


def elsewhere(root, how, *args):
    """`pasto ARGS` in a folder, with the model elsewhere."""
    command = [sys.executable, "-m", "tests.support.elsewhere", how, *map(str, args)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PASTO_CACHE": str(root / ".cache")}
    done = subprocess.run(
        command, cwd=root, env=os.environ | more, capture_output=True, text=True, timeout=900
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a dial that was trained on the CPU."""
    root = tmp_path_factory.mktemp("whole")
    (root / "own.yaml").write_text(OWN)
    (root / "anchors.txt").write_text(ANCHORS)
    said = call_in(root, "train", TINY, *SETTINGS)
    assert said.code in (0, 1), said.err
    return root


def test_what_mixes_devices_is_refused(tmp_path):
    code = """
import torch
from tests.support.elsewhere import Mixed, elsewhere
with elsewhere() as device:
    away, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
    assert (away + 1).device == device and float((away * 2).sum()) == 12
    for mixed in (lambda: away + here, lambda: torch.cat([away, here]), lambda: here @ away.T):
        try:
            mixed()
        except Mixed:
            continue
        raise SystemExit("not refused")
    parameter = torch.nn.Parameter(away)
    (parameter * away).sum().backward()
    assert parameter.grad.device == device and parameter.grad.cpu().tolist() == [[1.0] * 3] * 2
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("how", ["all", "half"])
def test_a_training_ends_with_the_same_numbers(whole, tmp_path, how):
    (tmp_path / "anchors.txt").write_text(ANCHORS)
    said = elsewhere(tmp_path, how, "train", TINY, *SETTINGS)
    assert said.code in (0, 1), said.err
    one, two = (
        load_file(root / "runs/latest/adapter/adapter.safetensors") for root in (whole, tmp_path)
    )
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4


def same(here, away):
    """Every number that was said is the same."""
    assert here.code == away.code == 0, away.err
    assert numbers(strict(away.out)) == pytest.approx(numbers(strict(here.out)), abs=2e-3)


def numbers(found):
    """In order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return [n for x in found for n in numbers(x)]
    return [float(found)] if isinstance(found, int | float) else []


@pytest.mark.long
@pytest.mark.parametrize("name", VERBS)
def test_every_verb_says_the_same(whole, name):
    args = (name.split()[0], *VERBS[name], "--json")
    same(call_in(whole, *args), elsewhere(whole, "all", *args))


@pytest.mark.parametrize("name", VERBS)
def test_layers_that_wait_on_disk(whole, tmp_path, name, monkeypatch):
    args = (name.split()[0], *VERBS[name], "--json")
    here = call_in(whole, *args)

    def load(*spec):
        lm = load_model(*spec)
        spread_out(lm.model, split(lm.model, "cpu", "disk"), offload_dir=str(tmp_path))
        assert lm.model.model.layers[5].mlp.down_proj.weight.device.type == "meta"
        return lm

    monkeypatch.setattr(dials, "load_model", load)
    same(here, call_in(whole, *args))


def test_balanced_on_one_device_is_the_model(whole):
    """What `model.device: balanced` gives where there is one device."""
    args = ("generate", "Hello.", "-c", "1", "--max-new-tokens", "4", "--json")
    one, other = call_in(whole, *args), call_in(whole, *args, "--device", "balanced")
    assert other.code == 0, other.err
    assert strict(other.out) == strict(one.out)
