"""Control shifts by kind: against a plain loop, and by laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.evaluation.control_kinds import control_kinds
from pasto_cli.core.records.evaluation import Answer, Row
from tests.support.evaluations import evaluation_of
from tests.support.examples import examples

KINDS = ("preference", "arithmetic")


def row(kind, n, ys, pmass=0.9):
    at = {
        k: Answer(y=y, pmass=pmass, top_token="Yes")
        for k, y in zip(("-1", "0", "1"), ys, strict=True)
    }
    labels = {"honesty": 1} if kind == "target" else {}
    return Row(id=f"{kind}{n}", group=f"{kind}{n // 2}", kind=kind, labels=labels, answers=at)


def run_of(controls):
    rows = [row("target", 0, (-1.0, 0.0, 1.0)), row("target", 2, (-0.5, 0.1, 0.4)), *controls]
    return evaluation_of(rows, provenance={"bootstrap_seed": 0})


answers = st.lists(st.tuples(*[st.floats(-4, 4)] * 3), min_size=2, max_size=8)


@examples(25)
@given(answers, answers)
def test_every_kind_is_the_mean_of_its_own_rows(tastes, sums):
    each = dict(zip(KINDS, (tastes, sums), strict=True))
    run = run_of([row(kind, n, ys) for kind in KINDS for n, ys in enumerate(each[kind])])
    found = control_kinds(run)
    assert [kind.name for kind in found] == list(KINDS)
    for kind in found:
        assert kind.rows == len(each[kind.name])
        for place, c in ((0, "-1"), (2, "1")):
            moved = [ys[place] - ys[1] for ys in each[kind.name]]
            size, mean = kind.sizes[c], kind.means[c]
            assert size.value == pytest.approx(sum(map(abs, moved)) / len(moved))
            assert mean.value == pytest.approx(sum(moved) / len(moved), abs=1e-9)
            assert abs(mean.value) <= size.value + 1e-9
            assert size.n == kind.rows and size.clusters == math.ceil(kind.rows / 2)
    # Law: the control shift of the scores is the kinds' mean, weighted by their rows.
    for c in ("-1", "1"):
        whole = sum(kind.rows * kind.sizes[c].value for kind in found)
        shift = run.scores.coefficients[c].control_shift
        assert shift is not None
        assert shift.value == pytest.approx(whole / sum(kind.rows for kind in found))


def test_an_answer_without_mass_is_left_out():
    rows = [row("preference", 0, (0.0, 0.0, 1.0)), row("preference", 2, (0.0, 0.0, 9.0), 0.01)]
    (kind,) = control_kinds(run_of(rows))
    assert kind.sizes["1"].value == kind.means["1"].value == 1.0 and kind.rows == 2


def test_a_kind_that_has_no_valid_answer_is_undefined_and_none_is_no_kind():
    (kind,) = control_kinds(run_of([row("arithmetic", 0, (0.0, 0.0, 1.0), 0.01)]))
    assert math.isnan(kind.sizes["1"].value) and math.isnan(kind.means["-1"].value)
    assert control_kinds(run_of([])) == []
