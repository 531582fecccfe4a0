"""`pasto tune`: every trial is a run, nothing is lost to a kill, and mistakes cost a line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pasto_cli.core.recipe.load import load_stored_recipe
from pasto_cli.workflows.tune import trial as trials_of
from tests.support.terminal import SHORT, TINY, call_in, strict

SPACE = "{training.lr: {low: 0.002, high: 0.02, log: true}, adapter.rank: [8, 16]}"
whole = pytest.mark.long
"""Of tests that train many times."""
SEARCH = (TINY, *SHORT, "--set", f"tune.keys={SPACE}", "--set", "tune.finalists=0")


def found_by(folder, *args):
    said = call_in(folder, "tune", *args, "--json")
    assert said.code == 0, said.err
    return strict(said.out)


def judged(run):
    """Strength and disturbance from pasto.json alone, for a dial without anchors and with ends."""
    meta = strict((run / "adapter" / "pasto.json").read_text())
    strength = meta["certificate"]["strength"]
    return min(strength["1"]["value"], -strength["-1"]["value"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A study of four trials, one of them trained again on two seeds."""
    root = tmp_path_factory.mktemp("searched")
    more = ("--set", "tune.finalists=1", "--set", "tune.seeds=2")
    return root, found_by(root, *SEARCH, *more, "--trials", 4)


@whole
def test_the_first_trial_is_the_recipe_and_each_is_a_run(searched):
    root, found = searched
    trials = found["trials"]
    assert [t["number"] for t in trials] == [1, 2, 3, 4]
    assert trials[0]["settings"] == {"training.lr": 0.01, "adapter.rank": 16}
    assert len({json.dumps(t["settings"]) for t in trials}) == 4
    for trial in trials:
        run = root / trial["run"]
        recipe = load_stored_recipe(run / "recipe.yaml")
        assert recipe.training.lr == trial["settings"]["training.lr"]
        assert recipe.adapter.rank == trial["settings"]["adapter.rank"] and recipe.tune is None
        assert trial["objectives"][0] == judged(run) and trial["objectives"][1] > 0
        assert 0.002 <= recipe.training.lr <= 0.02


@whole
def test_the_front_is_what_nothing_beats(searched):
    _, found = searched
    values = {t["number"]: t["objectives"] for t in found["trials"]}

    def beaten(n):
        return any(
            o[0] >= values[n][0] and o[1] <= values[n][1] and o != values[n]
            for o in values.values()
        )

    assert {t["number"] for t in found["trials"] if t["best"]} == {
        n for n in values if not beaten(n)
    }


@whole
def test_finalists_are_trained_again_on_other_seeds(searched):
    root, found = searched
    best = {t["number"]: t for t in found["trials"] if t["best"]}
    assert len(found["finalists"]) == 1
    for finalist in found["finalists"]:
        assert finalist["seeds"] == [1, 2] and finalist["number"] in best
        for run, seed, each in zip(
            finalist["runs"], finalist["seeds"], finalist["each"], strict=True
        ):
            recipe = load_stored_recipe(root / run / "recipe.yaml")
            assert recipe.training.seed == seed and each[0] == judged(root / run)
            assert recipe.training.lr == best[finalist["number"]]["settings"]["training.lr"]


@whole
def test_a_study_goes_on_and_a_trial_can_be_picked(searched, tmp_path):
    root, found = searched
    said = call_in(root, "tune", *SEARCH, "--trials", 4)
    assert said.error == "error: the study tiny has 4 of 4 trials" and "--resume" in said.next_step
    again = found_by(root, *SEARCH, "--trials", 4, "--resume")
    assert again["trials"] == found["trials"]
    more = found_by(root, *SEARCH, "--trials", 5, "--resume")
    assert more["trials"][:4] != [] and len(more["trials"]) == 5
    picked = call_in(root, "tune", *SEARCH, "--pick", 2)
    assert picked.out.strip() == found["trials"][1]["run"]
    assert call_in(root, "tune", *SEARCH, "--pick", 9).error.endswith("there is none")
    other = call_in(root, "tune", *SEARCH, "--set", "adapter.rank=4", "--resume")
    assert "is about another recipe" in other.error and "--study" in other.next_step


@whole
def test_a_study_has_a_table_and_a_page(searched):
    root, found = searched
    said = call_in(root, "tune", *SEARCH, "--trials", 4, "--resume")
    assert "strength" in said.out and said.code == 0
    (told,) = (line.partition(": ")[2] for line in said.out.splitlines() if "--pick" in line)
    assert (root / call_in(root, *shlex.split(told)[1:]).out.strip() / "adapter").is_dir()
    page = (root / "runs" / "tune" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and not any(tag in page for tag in ("<script", "<img", "<link", "src="))
    assert found["trials"][0]["run"] in page


@whole
def test_one_that_is_killed_ends_as_one_that_is_not(tmp_path, searched):
    """kill -9 in the second training: its run goes on, and later trials are what they would be."""
    _, whole = searched
    args = [sys.executable, "-m", "pasto_cli", "tune", *map(str, SEARCH), "--trials", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PASTO_CACHE": str(tmp_path / ".cache")}
    process = subprocess.Popen(
        args, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    state = "runs/tune/tiny/*-t002/checkpoint/start.safetensors"
    end = time.monotonic() + 120
    while not list(tmp_path.glob(state)) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (run,) = tmp_path.glob("runs/tune/tiny/*-t002")
    found = found_by(tmp_path, *SEARCH, "--trials", 4, "--resume")
    assert [t["state"] for t in found["trials"]] == ["complete"] * 4
    assert tmp_path / found["trials"][1]["run"] == run  # gone on with, not begun anew
    assert len(list(tmp_path.glob("runs/tune/tiny/*-t0*"))) == 4
    assert [t["settings"] for t in found["trials"]] == [t["settings"] for t in whole["trials"]]
    strengths = [[t["objectives"][0] for t in study["trials"]] for study in (found, whole)]
    assert strengths[0] == pytest.approx(strengths[1], rel=0.02)


@whole
def test_a_training_that_stays_behind_is_pruned(tmp_path, monkeypatch):
    """A rate that learns nothing, after two that did."""
    monkeypatch.setattr(trials_of, "PEERS", 2)
    keys = "{training.lr: [0.01, 1.0e-9]}"
    found = found_by(
        tmp_path,
        *(TINY, "--set", "training.epochs=3", "--set", "pairs.count=16"),
        *("--set", f"tune.keys={keys}", "--set", "tune.finalists=0", "--trials", 5),
    )
    rates = {(t["settings"]["training.lr"], t["state"]) for t in found["trials"]}
    assert (1e-9, "pruned") in rates and (0.01, "pruned") not in rates
    pruned = next(t for t in found["trials"] if t["state"] == "pruned")
    assert "the median of" in pruned["problem"] and pruned["objectives"] is None


@whole
def test_a_trial_that_fails_costs_itself_only(tmp_path):
    """Two settings that each stand alone and not together."""
    keys = "{adapter.last_layer: [0.5, 0.9], subspace.depth: [0.6, 0.95]}"
    args = (TINY, *SHORT, "--set", "adapter.last_layer=0.5", "--set", "subspace.depth=0.95")
    found = found_by(
        tmp_path, *args, "--set", f"tune.keys={keys}", "--set", "tune.finalists=0", "--trials", 5
    )
    failed = [t for t in found["trials"] if t["state"] == "failed"]
    for trial in failed:
        assert trial["settings"] == {"adapter.last_layer": 0.9, "subspace.depth": 0.6}
        assert "lies behind" in trial["problem"]
    assert len(failed) + sum(t["state"] == "complete" for t in found["trials"]) == 5


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["tune.keys={training.ratee: [1, 2]}"], "training.ratee = 1 makes no valid recipe"),
        (
            ["tune.keys={adapter.rank: {low: 0, high: 4}}"],
            "adapter.rank = 0 makes no valid recipe",
        ),
        (["tune.keys={training.lr: {low: 1, high: 1}}"], "must lie below high"),
        (["tune.keys={training.lr: {low: 0, high: 1, log: true}}"], "needs a low above 0"),
        (["tune.keys={training.lr: [0.1]}"], "at least two different choices"),
        (["tune.keys={name: [a, b]}"], "name is nothing to search over"),
        (["tune.trails=3"], "did you mean 'trials'?"),
    ],
)
def test_a_space_that_makes_no_recipe_is_refused_before_anything_is_made(pasto, changes, error):
    said = pasto("tune", TINY, *(a for change in changes for a in ("--set", change)))
    assert said.code == 1 and error in said.err and said.next_step
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--storage", "there"), "this is no URL of a database"),
        (("--storage", "postgresql://a:secret@127.0.0.1:9/x"), "cannot be used"),
        (("--storage", "oracle://x"), "cannot be used"),
        (("--worker",), "--worker joins a study"),
        (("--pick", "1"), "there is no study tiny"),
        (("--study", "a/b"), "cannot name a folder"),
    ],
)
def test_a_storage_that_is_none(pasto, args, error):
    said = pasto("tune", *SEARCH, *args)
    assert said.code == 1 and error in said.error and said.next_step
    assert "secret" not in said.err


def test_a_recipe_file_holds_the_search_and_a_training_leaves_it_out(pasto):
    recipe = yaml.safe_load(TINY.read_text()) | {
        "tune": {"keys": {"adapter.rank": [4, 8]}, "trials": 2, "finalists": 0}
    }
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert pasto("recipe", "own.yaml").code == 0
    found = strict(pasto("tune", "own.yaml", *SHORT, "--json").out)
    assert len(found["trials"]) == 2 == found["wanted"]
