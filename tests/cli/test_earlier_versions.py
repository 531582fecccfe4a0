"""What pasto wrote before it had today's names goes on to work.

`tests/data/format1` is a run of recipes/tiny.yaml and its evaluation, written by the version that
called `adapter.activation_pairs` `calibration_pairs`.
"""

import json
import shutil
from pathlib import Path

import pytest

from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.evaluation.scores import scores
from pasto_cli.core.records.evaluation import dump, parse

FORMAT1 = Path(__file__).parents[1] / "data" / "format1"
OLD, NEW = "calibration_pairs", "activation_pairs"


@pytest.fixture()
def old_run(tmp_path):
    """A copy of the run, in the folder where `pasto` works."""
    return Path(shutil.copytree(FORMAT1, tmp_path / "runs" / "old"))


def test_the_files_are_of_before_the_renaming():
    assert OLD in (FORMAT1 / "recipe.yaml").read_text()
    meta = json.loads((FORMAT1 / "adapter" / "pasto.json").read_text())
    assert OLD in meta["recipe"]["adapter"] and NEW not in meta["recipe"]["adapter"]


def test_an_adapter_of_format_1_is_whole(pasto, old_run):
    said = pasto("verify", old_run, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["hashed"] and found["same_bytes"] and found["certified"]
    assert max(found["differences"].values()) < 1e-3


def test_an_adapter_of_format_1_generates(pasto, old_run):
    command = ("generate", "-a", old_run, "--max-new-tokens", 4, "--json", "Hello.")
    said = pasto(*command, "--coeff", 0, "--coeff", 1)
    assert said.code == 0, said.err
    assert [record["coeff"] for record in json.loads(said.out)] == [0, 1]


def test_an_adapter_of_format_1_is_measured_and_published(pasto, old_run):
    said = pasto("eval", old_run, "--limit", 1, "--json")
    assert said.code == 0, said.err
    said = pasto("push", "me/dial", "-a", old_run, "--dry-run")
    assert said.code == 0 and "would upload to me/dial" in said.out, said.err


def test_a_run_of_before_gets_its_report(pasto, old_run):
    said = pasto("report", old_run, "--samples", 0)
    assert said.code == 0, said.err
    assert "Everyday dilemmas" in (old_run / "report.html").read_text()


def test_an_evaluation_of_before_has_the_same_scores_again():
    text = (FORMAT1 / "eval" / "mini-dilemmas.json").read_text()
    run = parse(text)
    table = Table(run.rows, run.value, run.coefficients, run.pmass_threshold)
    found = scores(table, run.provenance["bootstrap_seed"])
    again = dump(run.model_copy(update={"scores": found}))
    same(json.loads(again), json.loads(text))


def same(found, expected):
    """Every expected key, in order, with equal numbers but for rounding."""
    if isinstance(expected, dict) and {"value", "n"} <= set(expected) and expected["value"] is None:
        # n is of the rows that a score used since; earlier it was of all, used or not.
        assert found["value"] is found["low"] is found["high"] is None
        assert found["n"] == 0 or found["n"] == expected["n"]
    elif isinstance(expected, dict):
        # A later version may have measured more since.
        assert [key for key in found if key in expected] == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert found == expected


def test_a_finished_run_of_before_has_nothing_to_resume(pasto, old_run):
    said = pasto("train", "--resume", old_run)
    assert said.code == 1 and "is finished" in said.error
