"""`pasto interference`."""

import json

import pytest

from tests.support.terminal import strict


def test_interference_is_measured_on_each_dials_own_pairs(pasto, project, other):
    said = pasto("interference", f"{project.run}:1", f"{other}:-1", "--no-verify", "--json")
    assert said.code == 0, said.err
    one, two = strict(said.out)
    assert (one["name"], two["name"]) == (project.run.name, "other")
    assert (one["coefficient"], two["coefficient"]) == (1, -1)
    certificate = json.loads((project.run / "adapter" / "pasto.json").read_text())["certificate"]
    for key in ("value", "low", "high", "n"):
        assert one["alone"][key] == pytest.approx(certificate["strength"]["1"][key], abs=1e-4)
    shown = pasto("interference", f"{project.run}:1", f"{other}:-1", "--no-verify")
    assert "the others alone" in shown.out and f"{one['alone']['value']:+.2f}" in shown.out
    assert pasto("interference", project.run).code == 1


def test_interference_of_small_turns_is_none(pasto, project, other):
    """Strengths add up to first order; what is left is of second order, so it is a share of the sum
    that is itself of the size of the coefficients."""
    small = 0.01
    ends = (f"{project.run}:{small}", f"{other}:-{small}")
    said = pasto("interference", *ends, "--no-verify", "--json")
    assert said.code == 0, said.err
    for dial in strict(said.out):
        alone, others, together = (dial[way]["value"] for way in ("alone", "others", "together"))
        assert abs(alone) > 0.001 and abs(others) > 0.001
        assert together == pytest.approx(alone + others, rel=small)
