"""What evaluations leave behind: the keys of their JSON and their order, null for NaN."""

import json
import math

import pytest

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.oracles import simulate
from pasto_cli.core.evaluation.sentiment import score_texts
from pasto_cli.core.records.adapter import Calibration
from pasto_cli.core.records.evaluation import Answer, SentimentRun, dump, parse
from pasto_cli.core.records.scores import Disturbance
from tests.support.evaluations import evaluation_of

CLUSTERED = ["value", "low", "high", "n", "clusters"]
SCORES = [
    "steering_f1",
    "steering_f1_valid_only",
    "parts",
    "chance",
    "informedness",
    "slope",
    "monotonicity",
    "coefficients",
    "n_target",
    "n_control",
    "n_without_label",
    "selectivity",
    "against_share",
    "fixed",
    "broken",
]
E12 = Estimate(value=1.0, low=0.5, high=1.5, n=24, clusters=12)


@pytest.fixture(scope="module")
def run():
    """A perfect steerer on a few dilemmas, every score defined."""
    items = [i for i in load_benchmark("mini-dilemmas").items if i.kind != "target"]
    items += [i for i in load_benchmark("mini-dilemmas").items if "honesty" in i.labels][:20]
    rows = simulate(items, "honesty", "perfect", 0)
    disturbance = Disturbance(kl_p95=E12, kl_mean=E12, nll=E12, nll_shift=E12)
    return evaluation_of(rows, disturbance={"1": disturbance})


def test_the_keys_of_an_evaluation(run):
    found = json.loads(dump(run))
    assert list(found) == [
        "format_version",
        "benchmark",
        "title",
        "licence",
        "source",
        "value",
        "coefficients",
        "pmass_threshold",
        "label_sign",
        "partial",
        "rows",
        "scores",
        "disturbance",
        "provenance",
    ]
    assert list(found["rows"][0]["answers"]["1"]) == ["y", "pmass", "said"]
    s = found["scores"]
    assert list(s) == SCORES
    assert list(s["slope"]) == CLUSTERED
    assert list(s["chance"]) == ["mean", "p95", "p", "draws"]
    assert list(s["coefficients"]["1"]) == [
        "mean_score",
        "shift",
        "acquiescence",
        "pmass",
        "invalid",
        "control_shift",
        "task_kl",
    ]
    assert list(found["disturbance"]["1"]) == ["kl_p95", "kl_mean", "nll", "nll_shift"]
    assert list(found["disturbance"]["1"]["nll"]) == CLUSTERED


def test_a_comparison_comes_last_and_only_where_there_is_one(run):
    compared = run.model_copy(
        update={"scores": run.scores.model_copy(update={"slope_minus_adapter": E12})}
    )
    assert list(json.loads(dump(compared))["scores"]) == [*SCORES, "slope_minus_adapter"]
    assert parse(dump(compared)).scores.slope_minus_adapter == E12
    assert parse(dump(run)).scores.slope_minus_adapter is None


def test_an_evaluation_is_the_same_again(run):
    assert dump(parse(dump(run))) == dump(run)


def test_undefined_is_null_in_the_file_and_nan_after_it(run):
    undefined = Estimate.point(math.nan, 24)
    changed = run.model_copy(
        update={
            "scores": run.scores.model_copy(update={"slope": undefined}),
            "rows": [
                run.rows[0].model_copy(
                    update={"answers": {"0": Answer(y=-math.inf, pmass=0.0, top_token="x")}}
                )
            ],
        }
    )
    found = json.loads(dump(changed))
    assert (
        found["scores"]["slope"]["value"] is None and found["rows"][0]["answers"]["0"]["y"] is None
    )
    again = parse(dump(changed))
    assert math.isnan(again.scores.slope.value) and math.isnan(again.rows[0].answers["0"].y)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": 1}', "[" * 10_000, "null"])
def test_what_is_no_evaluation_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_the_keys_of_the_sentiment_benchmark():
    run = score_texts(["a", "b"], [0.0, 1.0], [["good", "bad"]] * 2, 0, {"seed": 1})
    found = json.loads(run.model_dump_json())
    assert list(found["scores"]) == ["slope", "coefficients", "n_prompts"]
    assert list(found["scores"]["slope"]) == CLUSTERED
    assert list(found["scores"]["coefficients"]["0"]) == ["sentiment", "distinct", "words"]
    assert SentimentRun.model_validate_json(run.model_dump_json()) == run


def test_format_1_of_an_adapter_records_no_clusters():
    """Whoever hands an estimate over need not know what the format holds."""
    found = Calibration(
        kl_p95=1.0,
        coefficients={"1": 0.5, "-1": -0.5},
        reached={"1": E12, "-1": E12},
        quantization="none",
    )
    assert list(found.model_dump()["reached"]["1"]) == ["value", "low", "high", "n"]
