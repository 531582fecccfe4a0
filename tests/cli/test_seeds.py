"""Several seeds of one recipe, trained and measured together."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.core.evaluation.evaluator import evaluate
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.records.evaluation import parse
from pasto_cli.workflows.dials import open_set
from pasto_cli.workflows.evaluate import plan_evaluation, want
from pasto_cli.workflows.progress import Silent
from tests.support.runs import CANDOUR, change_evaluation, score_every_answer
from tests.support.terminal import OWN, SHORT, TINY, call_in, strict

SHORTER = (*SHORT, "--set", "training.epochs=1", "--set", "training.precision=float32")


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory):
    """Two finished runs of one recipe, shared by the module: nothing may change them."""
    root = tmp_path_factory.mktemp("seeds")
    said = call_in(root, "train", TINY, *SHORTER, "--seeds", 2)
    assert said.code in (0, 1), said.err  # 1: on so few pairs a certificate may fail
    return root, said


@pytest.fixture()
def seeds(trained_twice, tmp_path):
    """Copies of the two runs, where `pasto` works, beside a benchmark of six questions; their names
    under runs/."""
    root, _ = trained_twice
    shutil.copytree(root / "runs", tmp_path / "runs", symlinks=True)
    (tmp_path / "own.yaml").write_text(OWN)
    runs = sorted((tmp_path / "runs").glob("*-seed*"))
    for run in runs:
        score_every_answer(run)
    return [f"runs/{run.name}" for run in runs]


def test_train_seeds_leaves_a_folder_for_each(trained_twice):
    root, _ = trained_twice
    names = sorted(p.name for p in (root / "runs").iterdir() if p.name != "latest")
    assert [name.split("-", 2)[2] for name in names] == ["tiny-seed0", "tiny-seed1"]
    assert (root / "runs" / "latest").resolve().name == names[1]
    recipes = [load_recipe(root / "runs" / name / "recipe.yaml") for name in names]
    assert [r.training.seed for r in recipes] == [0, 1]
    same = {"training": recipes[0].training, "name": recipes[0].name}
    assert recipes[1].model_copy(update=same) == recipes[0]  # nothing else differs


def test_seeds_differ_in_their_adapters_and_share_their_pairs(trained_twice):
    first, second = sorted((trained_twice[0] / "runs").glob("*-seed*"))
    a, b = (load_file(run / "adapter" / "adapter.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert (first / "pairs.jsonl").read_bytes() == (second / "pairs.jsonl").read_bytes()


def test_train_seeds_sums_up_their_strength_and_names_the_next_command(trained_twice):
    root, said = trained_twice
    names = sorted(p.name for p in (root / "runs").glob("*-seed*"))
    assert "Over 2 training runs" in said.out and "1 degrees of freedom" in said.out
    for name, coefficient in (("strength at +1", "1"), ("strength at -1", "-1")):
        values = [
            strict((root / "runs" / n / "adapter" / "pasto.json").read_text())["certificate"][
                "strength"
            ][coefficient]["value"]
            for n in names
        ]
        row = next(line for line in said.out.splitlines() if name in line)
        assert f"{values[0]:+.2f}, {values[1]:+.2f}" in row and f"{sum(values) / 2:+.2f} [" in row
    assert f"pasto eval {' '.join(f'runs/{name}' for name in names)} --together\n" in said.out
    assert "asked both ways" not in said.out  # nothing was asked both ways


def test_a_seed_does_not_depend_on_those_before_it(pasto, trained_twice):
    second = sorted((trained_twice[0] / "runs").glob("*-seed*"))[1]
    pasto("train", TINY, *SHORTER, "--set", "training.seed=1")
    alone, after = (
        load_file(p / "adapter" / "adapter.safetensors") for p in (Path("runs/latest"), second)
    )
    assert all(torch.equal(alone[name], after[name]) for name in after)


def test_train_seeds_json_counts_up_from_the_recipes_seed(pasto, tmp_path):
    said = pasto(
        "train",
        TINY,
        *SHORTER,
        "--set",
        "pairs.count=8",
        "--set",
        "training.seed=5",
        "--seeds",
        2,
        "--json",
    )
    records = strict(said.out)
    assert [Path(record["run"]).name.split("-", 2)[2] for record in records] == [
        "tiny-seed5",
        "tiny-seed6",
    ]
    for record, seed in zip(records, (5, 6), strict=True):
        assert load_recipe(tmp_path / record["run"] / "recipe.yaml").training.seed == seed
        assert set(record) == {"run", "result", "certificate", "calibration"}


def test_eval_of_two_runs(pasto, seeds):
    said = pasto("eval", *seeds, *CANDOUR)
    assert said.code == 0, said.err
    assert "Over 2 training runs" in said.out
    for number, run in enumerate(seeds):
        assert f"{run}/adapter, training seed {number}" in said.out
        written = parse(Path(run, "eval", "own.json").read_text())
        assert written.provenance["training_seed"] == number
    row = next(line for line in said.out.splitlines() if "KL p95 at +1" in line)
    each = [
        parse(Path(run, "eval", "own.json").read_text()).disturbance["1"].kl_p95.value
        for run in seeds
    ]
    assert ", ".join(f"{v:+.2f}" for v in each) in row


def test_dials_that_differ_in_more_than_their_seeds_are_no_seeds(pasto, seeds):
    said = pasto("eval", *seeds, *CANDOUR)
    assert said.code == 0 and "more than their seeds" not in said.err
    path = Path(seeds[1], "adapter", "pasto.json")
    meta = json.loads(path.read_text())
    meta["recipe"]["losses"]["coherence"]["weight"] = 7.0
    meta["recipe"]["training"]["epochs"] = 9
    path.write_text(json.dumps(meta))
    said = pasto("eval", *seeds, *CANDOUR)
    assert said.code == 0, said.err
    (line,) = [x for x in said.err.splitlines() if "more than their seeds" in x]
    assert "(losses.coherence.weight, training.epochs)" in line


def test_eval_of_two_runs_as_json(pasto, seeds):
    said = pasto("eval", *seeds, *CANDOUR, "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    assert set(found) == {"runs", "across"}
    runs = [parse(json.dumps(record)) for record in found["runs"]]
    assert [run.provenance["training_seed"] for run in runs] == [0, 1]
    assert runs[0].rows != runs[1].rows
    slope = found["across"]["slope of the mean score, nats"]
    assert slope["values"] == [run.scores.slope.value for run in runs]
    assert slope["n"] == 2 and slope["mean"] == pytest.approx(sum(slope["values"]) / 2)
    assert slope["low"] < slope["mean"] < slope["high"]


def test_eval_of_two_runs_turned_together(pasto, seeds):
    """Each at half of its coefficient, as by hand; kept beside the last run."""
    said = pasto("eval", *seeds, *CANDOUR, "--together", "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    names = [[record["method"] for record in methods] for methods in found["runs"]]
    assert names == [["adapter"], ["adapter", "together"]]
    kept = parse(Path(seeds[1], "eval", "own-together-compared.json").read_text())
    dials = open_set([f"{run}:0.5" for run in reversed(seeds)], Silent())
    asked = want(dials.dials[0].recipe, benchmark="own.yaml", value="candour")
    plan = plan_evaluation(dials.dials[0], asked)
    with layer_precision(dials.lm, plan.precision):
        run = evaluate(dials.lm, dials.steerer, plan.benchmark, plan.settings, provenance={})
    for own, by_hand in zip(kept.rows, run.rows, strict=True):
        for a in ("-1", "0", "1"):
            assert own.answers[a].y == pytest.approx(by_hand.answers[a].y, abs=1e-5)
    members = kept.provenance["together"]
    assert [Path(x["adapter"]).parent.name for x in members] == [
        Path(run).name for run in reversed(seeds)
    ]
    assert [(x["training_seed"], x["share"]) for x in members] == [(1, 0.5), (0, 0.5)]
    alone = parse(Path(seeds[1], "eval", "own-adapter-compared.json").read_text())
    assert any(
        abs(x.answers["1"].y - y.answers["1"].y) > 2e-3
        for x, y in zip(kept.rows, alone.rows, strict=True)
    )
    shown = pasto("eval", *seeds, *CANDOUR, "--together", "--equal-kl")
    assert shown.code == 0 and "together" in shown.out


def test_what_cannot_be_turned_together_is_said_before_anything_is_measured(pasto, seeds):
    said = pasto("eval", seeds[0], *CANDOUR, "--together")
    assert said.code == 1 and "--together needs several adapters" in said.error
    said = pasto("eval", seeds[0], f"{seeds[0]}/adapter", *CANDOUR, "--together")
    assert said.code == 1 and "names one adapter twice" in said.error
    said = pasto("eval", *seeds, *CANDOUR, "--together", "--baseline", "together")
    assert said.code == 1 and "./together" in said.err
    path = Path(seeds[1], "adapter", "pasto.json")
    meta = json.loads(path.read_text())
    was = meta["reference"]["logits"]["1"][0]
    meta["reference"]["logits"]["1"][0] += 5
    path.write_text(json.dumps(meta))
    said = pasto("eval", *reversed(seeds), *CANDOUR, "--together")
    assert said.code == 1 and "reference logits" in said.error
    said = pasto("eval", *reversed(seeds), *CANDOUR, "--together", "--no-verify")
    assert said.code == 0, said.err
    meta["reference"]["logits"]["1"][0] = was
    meta["base"]["spec"]["system"] = "Be brief."
    path.write_text(json.dumps(meta))
    said = pasto("eval", *seeds, *CANDOUR, "--together")
    assert said.code == 1 and "one system prompt" in said.error
    meta["base"]["spec"] |= {"system": None, "source": "random:qwen3"}
    path.write_text(json.dumps(meta))
    said = pasto("eval", *seeds, *CANDOUR, "--together")
    assert said.code == 1 and "these are of random:llama and random:qwen3" in said.error
    said = pasto("eval", *seeds, "-b", "sentiment", "--together")
    assert said.code == 1 and "--together does not go with" in said.error


def test_sentiment_of_two_runs(pasto, seeds):
    found = strict(pasto("eval", *seeds, "-b", "sentiment", "--limit", 2, "--json").out)
    assert [run["provenance"]["training_seed"] for run in found["runs"]] == [0, 1]
    assert found["across"]["slope of sentiment"]["values"] == [
        run["scores"]["slope"]["value"] for run in found["runs"]
    ]


def test_eval_refuses_to_sum_up_runs_that_were_asked_different_things(pasto, seeds):
    for run, value in zip(seeds, ("candour", "peace"), strict=True):
        change_evaluation(Path(run), value=value)
    said = pasto("eval", *seeds, "-b", "own.yaml")
    assert (said.code, said.out) == (1, "")
    assert "not measured on the same items and value" in said.error and "--value" in said.next_step
