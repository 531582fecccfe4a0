"""`pasto calibrate`, and per cent of what it found."""

import pytest
import torch

from pasto_cli.core.evaluation.disturbance import measure_disturbance
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.evaluate import neutral_probe
from tests.support.terminal import strict


def test_a_calibrated_dial_turns_by_per_cent(pasto, project):
    before = pasto("generate", "--strength", "50", "Hello")
    assert (
        before.code == 1
        and "not calibrated" in before.error
        and "pasto calibrate" in before.next_step
    )
    said = pasto("calibrate", "--kl", "0.05", "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    assert (
        dial.meta.calibration is not None
        and dial.meta.calibration.coefficients == found["coefficients"]
    )
    for key, sign in (("1", 1), ("-1", -1)):
        a = found["coefficients"][key]
        assert a * sign > 0
        reading = measure_disturbance(dial.lm, dial.steerer, neutral_probe(dial), a)
        assert reading.kl_p95 == pytest.approx(0.05, rel=0.05) == found["reached"][key]["value"]
        assert dial.meta.coefficient(sign * 50) == pytest.approx(a / 2)
    half = strict(
        pasto("generate", "--strength", "-50", "--max-new-tokens", "3", "--json", "Hello").out
    )
    assert half[0]["coeff"] == pytest.approx(found["coefficients"]["-1"] / 2)
    assert "strength +100 %" in (project.run / "adapter" / "README.md").read_text()
    assert pasto("verify").code == 0  # the artifact is still whole
    for wrong in (("--strength", "50", "--coeff", "1"), ("--strength", "101")):
        assert pasto("generate", *wrong, "Hello").code in (1, 2)
    assert pasto("calibrate", "--kl", "0").code == 1


def test_the_python_dial_knows_its_strength(project, pasto):
    import pasto_cli

    assert pasto("calibrate", "--kl", "0.05").code == 0
    model, tokenizer, dial = pasto_cli.load(project.run)
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        base = model(input_ids=ids).logits
        with dial.at(dial.strength(0)):
            assert torch.equal(model(input_ids=ids).logits, base)
        with dial.at(dial.strength(100)):
            assert not torch.equal(model(input_ids=ids).logits, base)
