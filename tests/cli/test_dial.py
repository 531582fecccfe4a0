"""`pasto dial`: one line from a model to a dial."""

import json
from pathlib import Path

import pytest

from pasto_cli.core.evaluation.tell_apart import ends_apart
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.records.plan import Measured, Plan, PlanRecord, Remedy
from pasto_cli.workflows import dials
from pasto_cli.workflows.dial import TRIED, say_whether_it_fits
from pasto_cli.workflows.plan import comparison
from pasto_cli.workflows.progress import Silent
from pasto_cli.workflows.telling import everyday_prompts
from tests.support.terminal import call_in, strict

DIAL = ("dial", "random:llama", "honest", "dishonest", "--recipe", "tiny")
SMALL = ("--set", "training.batch_size=2", "--set", "training.epochs=1", "--set", "pairs.count=16")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One dial, and what was said of it."""
    root = tmp_path_factory.mktemp("dial")
    said = call_in(root, *DIAL, *SMALL, "--seed", 3, "--recipe-out", "mine.yaml", "--json")
    assert said.code in (0, 1), said.err  # 1: on so few pairs the certificate may fail
    return root, said


def test_a_dial_is_planned_trained_and_tried(made):
    root, said = made
    found = strict(said.out)
    assert found["plan"]["base"]["source"] == "random:llama"
    assert [text["coeff"] for text in found["texts"]] == [-1, 0, 1]
    assert found["certificate"] is not None
    assert (root / found["run"] / "adapter" / "pasto.json").is_file()
    assert "plan: " in said.err
    assert Path(found["run"]).name.endswith("-honest-dishonest")


def test_it_is_asked_what_tells_its_ends_apart(made):
    root, said = made
    found = strict(said.out)
    run = root / found["run"]
    dial = dials.open_dial(str(run), Silent(), packing=False)
    asked = everyday_prompts(run, 3, TRIED)
    distances = {prompt: ends_apart(dial.lm, dial.steerer, [prompt])[0] for prompt in asked}
    assert len(distances) == TRIED and found["prompt"] == max(distances, key=distances.get)


def test_the_recipe_that_it_ran_is_written_down(made):
    """What training on one recipe twice gives is tested with `pasto train`."""
    root, said = made
    run = root / strict(said.out)["run"]
    assert (root / "mine.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    recipe = load_recipe(root / "mine.yaml")
    assert recipe.model.source == "random:llama" and recipe.pairs.words == ("honest", "dishonest")
    assert recipe.pairs.seed == recipe.training.seed == 3
    assert recipe.training.epochs == 1  # --set has the last word
    assert json.loads((run / "adapter" / "pasto.json").read_text())["recipe"] == recipe.model_dump(
        mode="json"
    )


class Heard(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def test_a_plan_that_does_not_fit_is_a_warning_with_what_would(made):
    plan = Plan.model_validate(strict(made[1].out)["plan"])
    assert plan.devices[0].fits
    heard = Heard()
    say_whether_it_fits(plan, heard)
    assert heard.warnings == []
    small = plan.devices[0].model_copy(update={"memory": 2**20})
    remedy = Remedy(settings=["adapter.rank=16"], peak=2**19, fits=True, costs="directions")
    tight = plan.model_copy(update={"devices": [small], "remedies": [remedy]})
    say_whether_it_fits(tight, heard)
    (warning,) = heard.warnings
    assert "has 1 MiB" in warning and "--set adapter.rank=16 needs less" in warning


def test_plan_and_measured_peak_stand_in_one_line(made):
    plan = Plan.model_validate(strict(made[1].out)["plan"])
    peak = plan.devices[0].peak
    measured = Measured(device="cpu", phases={"load": 1, "step": peak // 2}, step=None)
    line = comparison(PlanRecord(plan=plan, measured=measured))
    assert line.startswith("memory: planned 0.") and line.endswith("(+100%)")
    assert PlanRecord(plan=plan).error is None


@pytest.mark.parametrize(
    ("arguments", "error", "next_step"),
    [
        (("dial", "random:lama", "a", "b"), "no random model is called 'lama'", "random:llama?"),
        (("dial", "./nowhere", "a", "b"), "./nowhere: no such folder", "Give a folder"),
        ((*DIAL[:2], "kind", "kind"), "nothing to contrast", "Give two different words."),
        ((*DIAL, "--set", "training.epohcs=1"), "did you mean 'epochs'?", "pasto recipe --schema"),
        ((*DIAL, "--recipe-out", "there.yaml"), "there.yaml exists", "--recipe-out"),
        ((*DIAL[:4], "--recipe", "tny"), "tny: no such recipe", "tiny"),
    ],
)
def test_a_mistake_is_said_before_anything_is_trained(pasto, arguments, error, next_step):
    Path("there.yaml").write_text("mine\n")
    said = pasto(*arguments)
    assert (said.code, said.out) == (1, "")
    assert error in said.error and next_step in said.next_step
    assert not Path("runs").exists() and Path("there.yaml").read_text() == "mine\n"


@pytest.mark.long
def test_a_search_comes_first_where_it_is_asked_for(tmp_path):
    """Its choice is a finalist's: the most strength for a nat, on the other seeds."""
    keys = "tune={keys: {training.lr: [0.004, 0.01]}, finalists: 2, seeds: 1}"
    said = call_in(tmp_path, *DIAL, *SMALL, "--set", keys, "--tune", 2, "--json")
    assert said.code in (0, 1), said.err
    found = strict(said.out)
    study = strict((tmp_path / "runs/tune/honest-dishonest/study.json").read_text())
    again = {f["number"]: f["each"][0][0] / f["each"][0][1] for f in study["finalists"]}
    best = study["trials"][max(again, key=again.get) - 1]
    recipe = load_recipe(tmp_path / found["run"] / "recipe.yaml")
    assert recipe.training.lr == best["settings"]["training.lr"]
    assert f"the search chose trial {best['number']}" in said.err
