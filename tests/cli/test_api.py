"""The Python interface, on a run that the command line made."""

import math

import pytest
import torch

import pasto_cli
from pasto_cli.base.errors import PastoError
from tests.support.runs import base_text

PROMPT = "Should I tell my boss that I overslept?"


def test_python_interface(trained, tiny):
    model, tokenizer, dial = pasto_cli.load(str(trained.run))
    assert dial.meta.recipe["name"] == "tiny"
    ids = torch.tensor([tokenizer("Tell me.")["input_ids"]] * 2)

    def logits():
        with torch.no_grad():
            return model(input_ids=ids).logits

    base = logits()
    with torch.no_grad():
        assert torch.equal(
            base, tiny().model(input_ids=ids).logits
        )  # outside `at` the model is the untouched base
    with dial.at(-1.0):
        down = logits()
    with pasto_cli.steer(model, -1.0):
        assert torch.equal(logits(), down)
    with dial.at([0.0, -1.0]):
        rows = logits()
    assert not torch.allclose(down, base)
    torch.testing.assert_close(rows, torch.stack([base[0], down[1]]), rtol=0, atol=1e-5)
    assert torch.equal(logits(), base)
    with pytest.raises(RuntimeError, match="stop"), dial.at(1.0):
        raise RuntimeError("stop")
    assert torch.equal(logits(), base)

    found = list(dial.generate(PROMPT, coeffs=[-1, 0, 1], max_new_tokens=16))
    assert [a for a, _ in found] == [-1, 0, 1]
    assert found[1][1] == base_text(tiny(), PROMPT, 16)
    one, two = (list(dial.generate(PROMPT, [1.0], 8, temperature=1.0, seed=s)) for s in (1, 1))
    assert one == two
    with pytest.raises(PastoError, match="not finite"), dial.at(math.nan):
        pass
    assert list(dial.generate(PROMPT, coeffs=[])) == []
    with pytest.raises(PastoError, match="range is -1000 to 1000"):
        list(dial.generate(PROMPT, coeffs=[2000.0]))
    with pytest.raises(PastoError, match="of 0 tokens"):
        list(dial.generate(PROMPT, max_new_tokens=0))


def test_steering_a_model_without_a_dial():
    with pytest.raises(PastoError, match="no dial"), pasto_cli.steer(torch.nn.Linear(1, 1), 1.0):
        pass
