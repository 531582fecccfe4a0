"""The whole life of a dial on a device that is not the CPU (`tests.support.elsewhere`).

A tensor that is made on the wrong device ends it, as it would on a GPU. The operations are the
CPU's own but for attention, which torch takes apart there, so that what comes out has to be the
same but for rounding."""

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.core.models.loading import load_model
from pasto_cli.workflows import dials
from tests.support.elsewhere import Mixed, elsewhere
from tests.support.runs import CANDOUR
from tests.support.terminal import OWN, TINY, call_in, strict

SMALL = (
    "training.epochs=1",
    "training.batch_size=8",
    "pairs.count=12",
    "adapter.max_modules=2",
    "losses.anchor={count: 2, tokens: 2}",
    "evaluation.benchmark=sentiment",
)
SETTINGS = [x for key in SMALL for x in ("--set", key)]


def test_what_mixes_devices_is_refused():
    with elsewhere() as device:
        away = torch.ones(2, 3, device=device)
        here = torch.ones(2, 3)
        assert (away + 1).device == device and float((away * 2).sum()) == 12
        for mixed in (lambda: away + here, lambda: torch.cat([away, here]), lambda: here @ away.T):
            with pytest.raises(Mixed):
                mixed()
        parameter = torch.nn.Parameter(away)
        (parameter * away).sum().backward()
        assert parameter.grad.device == device and parameter.grad.cpu().tolist() == [[1.0] * 3] * 2


VERBS = {
    "eval": (*CANDOUR, "--baseline", "control-vector", "--baseline", "random-rotation"),
    "generate": ("Hello.", "-c", "-1", "-c", "0.5", "--max-new-tokens", "3"),
    "generate sampled": ("Hello.", "--temperature", "0.7", "--max-new-tokens", "3"),
    "export": ("--coeff", "1", "--format", "lora"),
    "verify": (),
}


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """(folder of a life on the CPU, of one elsewhere, open_model that moves what it loads)."""
    folders = []
    for where in ("cpu", "elsewhere"):
        root = tmp_path_factory.mktemp(where)
        (root / "own.yaml").write_text(OWN)
        said = live(root, "train", TINY, *SETTINGS, away=where == "elsewhere")
        assert said.code in (0, 1), said.err
        folders.append(root)
    return folders


def live(root, *args, away):
    """`pasto ARGS` in a folder, with the model on the CPU or elsewhere."""
    if not away:
        return call_in(root, *args)
    with elsewhere() as device, pytest.MonkeyPatch.context() as patch:

        def load(*spec):
            lm = load_model(*spec)
            lm.model.to(device)
            assert lm.device == device
            return lm

        patch.setattr(dials, "load_model", load)
        return call_in(root, *args)


@pytest.mark.long
def test_a_training_ends_with_the_same_numbers(lives):
    one, two = (load_file(r / "runs/latest/adapter/adapter.safetensors") for r in lives)
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("name", VERBS)
def test_every_verb_says_the_same(lives, name):
    args = (name.split()[0], *VERBS[name], "--json")
    here, away = (live(root, *args, away=i == 1) for i, root in enumerate(lives))
    assert here.code == away.code == 0, away.err
    assert numbers(strict(away.out)) == pytest.approx(numbers(strict(here.out)), abs=2e-3)


def numbers(found):
    """Every number that was said, in order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return [n for x in found for n in numbers(x)]
    return [float(found)] if isinstance(found, int | float) else []
