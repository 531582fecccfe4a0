"""Answers that are none: no flip without an answer at 0, no interval from one row, n as used."""

import math

import pytest

from pasto_cli.core.evaluation.control_kinds import control_kinds
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.evaluation.scores import scores, selectivity_difference
from pasto_cli.core.records.evaluation import Answer, Row
from tests.support.evaluations import evaluation_of

INVALID = 0.01
"""Under the threshold of 0.05."""


def row(kind, n, ys, pmass=(0.9, 0.9, 0.9)):
    answers = {
        k: Answer(y=y, pmass=mass, top_token="Yes")
        for k, y, mass in zip(("-1", "0", "1"), ys, pmass, strict=True)
    }
    labels = {"honesty": 1} if kind == "target" else {}
    return Row(id=f"{kind}{n}", group=f"{kind}{n}", kind=kind, labels=labels, answers=answers)


def table(rows):
    return Table(rows, "honesty", ENDS, 0.05)


TARGETS = [row("target", n, (-1.0, -0.5, 0.5 + n)) for n in range(3)]


def test_a_control_without_an_answer_at_0_can_not_flip():
    """A dial that does nothing flips nothing, whatever the base leaves unanswered."""
    still = [row("preference", n, (1.0, 1.0, 1.0)) for n in range(3)]
    unasked = [row("preference", n, (1.0, 1.0, 1.0), (INVALID,) * 3) for n in range(3, 6)]
    found = table(TARGETS + still + unasked)
    assert found.f1(found.every).arbitrary_rate == 0
    lost = row("preference", 6, (1.0, 1.0, 1.0), (0.9, 0.9, INVALID))
    found = table(TARGETS + still + unasked + [lost])
    parts = found.f1(found.every)
    assert parts.arbitrary_rate == pytest.approx(1 / 4)
    without = table(TARGETS + still + [lost])
    assert parts.arbitrary == without.f1(without.every).arbitrary


@pytest.mark.parametrize("silent", ["preference", "target"])
def test_steering_f1_is_undefined_where_one_side_has_no_answer_at_all(silent):
    rows = TARGETS + [row("preference", n, (1.0, 1.0, 1.0)) for n in range(3)]
    rows = [
        row(r.kind, n, [r.answers[c].y for c in ("-1", "0", "1")], (INVALID,) * 3)
        if r.kind == silent
        else r
        for n, r in enumerate(rows)
    ]
    found = table(rows)
    parts = found.f1(found.every)
    assert all(math.isnan(x) for x in (parts.f1, parts.precision, parts.arbitrary_rate))
    assert math.isnan(scores(found).steering_f1.value)


def test_one_valid_row_has_no_interval_and_is_counted_as_one():
    silent = [row("target", n, (-1.0, 0.0, 1.0), (INVALID,) * 3) for n in range(5)]
    controls = [row("preference", n, (0.5, 1.0, 1.5)) for n in range(4)]
    found = scores(table([row("target", 9, (-1.0, 0.0, 1.0)), *silent, *controls]))
    for estimate in (found.slope, found.at(1.0).shift, found.monotonicity):
        assert estimate.value == pytest.approx(1.0)
        assert math.isnan(estimate.low) and (estimate.n, estimate.clusters) == (1, 1)
    assert found.at(1.0).control_shift.n == 4
    assert found.num_dilemmas == 6 and found.n_target == 6
    assert math.isfinite(found.selectivity.value) and math.isnan(found.selectivity.low)
    both = table([row("target", 9, (-1.0, 0.0, 1.0)), *silent, *controls])
    assert math.isnan(selectivity_difference(both, both).low)


def test_intervals_do_not_change_where_every_answer_counts():
    """Rows that are not used are drawn all the same: those that are keep their draws."""
    controls = [row("preference", n, (0.5, 1.0, 1.5 + n)) for n in range(4)]
    found = scores(table(TARGETS + controls))
    assert found.slope.n == 3 and found.slope.clusters == 3
    assert found.slope.low < found.slope.value < found.slope.high
    run = evaluation_of([*TARGETS, *controls[:1], row("preference", 9, (0, 0, 0), (INVALID,) * 3)])
    (kind,) = control_kinds(run)
    assert math.isnan(kind.sizes["1"].low) and kind.sizes["1"].n == 1 and kind.rows == 2
