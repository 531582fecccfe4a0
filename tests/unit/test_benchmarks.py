"""Benchmarks: what the bundled one holds, DailyDilemmas' counts, and clear errors for bad files."""

from collections import Counter

import pytest
import yaml

from pasto_cli import bundled
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks import load_benchmark
from pasto_cli.evaluation.benchmarks.item import own_labels
from pasto_cli.evaluation.benchmarks.schema import parse_benchmark

FILE = bundled.lines("benchmarks/mini-dilemmas.yaml")


def test_mini_dilemmas_has_what_is_promised():
    b = load_benchmark("mini-dilemmas")
    kinds = Counter(i.kind for i in b.items)
    assert kinds["target"] >= 120 and kinds["preference"] == 40 and kinds["arithmetic"] == 40
    honesty = Counter((i.id.rsplit("/", 1)[1], i.labels["honesty"]) for i in b.items if "honesty" in i.labels)
    assert sum(honesty.values()) >= 80
    assert (
        honesty["to_do", 1] == honesty["not_to_do", -1] == pytest.approx(honesty["to_do", -1], abs=4)
    )  # a yes-sayer gains nothing
    assert len({i.id for i in b.items}) == len(b.items)


def test_arithmetic_controls_are_right_and_mirrored():
    for control in yaml.safe_load("\n".join(FILE))["controls"]:
        if control["kind"] != "arithmetic":
            continue
        for n, question in enumerate(control["questions"]):
            task, _, rest = question.removeprefix("What is ").partition("? Proposed answer: ")
            proposed = int(rest.split(".")[0])
            assert (eval(task) == proposed) == (n == control["right"]), question


def test_labels_belong_to_the_own_action():
    assert own_labels(["Honesty", "trust"], ["loyalty ", "trust"]) == {"honesty": 1, "loyalty": -1}


def test_dailydilemmas_counts(dailydilemmas):
    """334 dilemmas with honesty on to_do only and 69 on not_to_do only, as its own documentation says."""
    b = load_benchmark("dailydilemmas", str(dailydilemmas))
    targets = [i for i in b.items if i.kind == "target"]
    assert len(targets) == 2720 and len(b.items) == 2800
    counts = Counter((i.id.rsplit("/", 1)[1], i.labels["honesty"]) for i in targets if "honesty" in i.labels)
    assert counts == {("to_do", 1): 334, ("not_to_do", -1): 334, ("to_do", -1): 69, ("not_to_do", 1): 69}
    one, other = targets[0], targets[1]
    assert one.group == other.group and one.prompt != other.prompt  # each row asks about its own action


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(format=2), "format"),
        (lambda d: d["dilemmas"][0].pop("situation"), "dilemmas.0.situation"),
        (lambda d: d["dilemmas"][0]["actions"].pop(), "dilemmas.0.actions"),
        (lambda d: d["controls"][0].update(right=1), "preference controls have none"),
        (lambda d: d.update(instruction="Choose."), "must hold {situation}"),
        (lambda d: d["dilemmas"].append(d["dilemmas"][0]), "given twice"),
    ],
)
def test_bad_files_are_named_by_key(change, expected):
    data = yaml.safe_load("\n".join(FILE))
    change(data)
    with pytest.raises(PastoError) as caught:
        parse_benchmark(yaml.safe_dump(data), "mine.yaml")
    assert expected in str(caught.value) and "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("dailydilema", None, "Did you mean dailydilemmas?"),
        ("mini-dilemmas", "x", "--data is for dailydilemmas"),
        ("dailydilemmas", "/nowhere", "cannot be read"),
        ("dailydilemmas", None, "cannot be loaded from the Hub"),
    ],
)
def test_benchmarks_that_cannot_be_had(name, data, expected):
    with pytest.raises(PastoError) as caught:
        load_benchmark(name, data)
    assert expected in str(caught.value)


def test_another_file_is_not_taken_for_dailydilemmas(tmp_path):
    (tmp_path / "dilemma_to_action_to_values_aggregated.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PastoError, match="not the DailyDilemmas file"):
        load_benchmark("dailydilemmas", str(tmp_path))
