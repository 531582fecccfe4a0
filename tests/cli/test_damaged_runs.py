"""Files of a run that something has damaged, and what can be refused before a model is loaded."""

import json

import pytest

from pasto_cli.workflows import dials


@pytest.fixture()
def no_model(monkeypatch):
    """Whoever loads a model fails the test."""

    def load(*_args, **_options):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(dials, "load_model", load)


def test_a_damaged_line_of_the_history_costs_that_line(pasto, project, no_model):
    path = project.run / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    broken = [b'{"step": 1, "bro\n', b"{}\n", b"\xff\xfe\n", b"[1]\n"]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"".join(broken) + b"".join(lines[5:]) + b'{"ep')
    said = pasto("report", project.run, "--samples", 0)
    assert said.code == 0 and (project.run / "report.html").stat().st_size
    assert "history.jsonl: 4 damaged lines are left out (2, 3, 4, 5)" in said.err


def test_a_history_without_a_good_line(pasto, project, no_model):
    (project.run / "history.jsonl").write_text("{}\n")
    said = pasto("report", project.run, "--samples", 0)
    assert said.code == 0 and "1 damaged lines are left out (1); 0 are shown" in said.err


def test_samples_of_another_form_are_made_anew(pasto, project):
    path = project.run / "samples.json"
    path.write_text('[{"prompt": 1, "texts": []}]')
    assert pasto("report", project.run, "--samples", 1).code == 0
    (sample, control) = json.loads(path.read_text())
    assert isinstance(sample["prompt"], str) and set(sample["texts"]) == {"-1", "0 (base)", "+1"}


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("report", "--out", "."), "cannot write .: Is a directory"),
        (("eval", "-b", "two.jsonl"), "is labelled for 'honesty'"),
        (("eval", "--value", "zeal"), "is labelled for 'zeal'"),
        (("eval", "-b", "sentiment", "--coeffs=0"), "two coefficients or more"),
        (("eval", "--coeffs=-1,0,1e30"), "--coeffs: 1e+30 is not a coefficient"),
        (("generate", "hi", "-c", "1e30"), "--coeff: 1e+30 is not a coefficient"),
        (("generate", "hi", "-c", "nan"), "--coeff: nan is not a coefficient"),
        (("generate", "hi", "-a", "runs/latest:1e30"), "1e+30 is not a coefficient"),
        (("generate", "hi", "--temperature", "1e-40"), "a temperature of 1e-40"),
        (("export", "--format", "zip"), "--format 'zip' is not known"),
        (("export", "-c", "0"), "coefficient 0 is the base model"),
        (("interference", "runs/latest:1", "runs/latest:inf"), "inf is not a coefficient"),
    ],
)
def test_refused_before_a_model_is_loaded(pasto, project, no_model, args, error):
    record = {"question": "Is it so?", "matching": "yes"}
    two = [record | {"id": v, "value": v} for v in ("candour", "peace")]
    (project.root / "two.jsonl").write_text("\n".join(map(json.dumps, two)))
    said = pasto(*args)
    assert said.code == 1 and error in said.error and said.next_step


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808"])
def test_seeds_of_options(pasto, seed):
    for args in (("generate", "hi"), ("make-pairs", "a", "b"), ("chat",), ("dial", "m", "a", "b")):
        said = pasto(*args, "--seed", seed)
        assert said.code == 2 and "from 0 to 9223372036854775807" in said.err
