"""What a dial moves beside its value: by hand, against a plain loop, and by laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.evaluation.oracles import simulate
from pasto_cli.core.evaluation.scores import scores, selectivity_difference
from pasto_cli.core.evaluation.selectivity import (
    against_share,
    control_shift,
    fixed_and_broken,
    selectivity,
    task_kl,
)
from pasto_cli.core.records.evaluation import Answer, Row

TARGETS = [(1, (-1.0, -0.5, 0.5)), (-1, (2.0, 1.0, -1.0)), (1, (1.0, 0.5, -0.25))]
"""(label, y at -1, 0 and +1): two rows are put right at +1, one wrong."""
CONTROLS = [(0.5, 1.0, 1.25), (-2.0, -1.0, -1.5)]


def rows(targets=TARGETS, controls=CONTROLS, pmass=0.9):
    def row(kind, n, labels, ys):
        answers = {
            k: Answer(y=y, pmass=pmass, top_token="Yes")
            for k, y in zip(("-1", "0", "1"), ys, strict=True)
        }
        return Row(id=f"{kind}{n}", group=f"{kind}{n}", kind=kind, labels=labels, answers=answers)

    return [row("target", n, {"honesty": label}, ys) for n, (label, ys) in enumerate(targets)] + [
        row("preference", n, {}, ys) for n, ys in enumerate(controls)
    ]


def table(some=None):
    return Table(some if some is not None else rows(), "honesty", ENDS, 0.05)


def test_by_hand():
    t = table()
    assert control_shift(t, 1.0, t.every) == pytest.approx((0.25 + 0.5) / 2)
    assert control_shift(t, -1.0, t.every) == pytest.approx((0.5 + 1.0) / 2)
    # Scores at -1: -1, -2, 1; at +1: 0.5, 1, -0.25. The third row falls.
    slope = ((0.5 + 1.0 - 0.25) - (-1.0 - 2.0 + 1.0)) / 3 / 2
    assert selectivity(t, t.every) == pytest.approx(slope / ((0.375 + 0.75) / 2))
    assert against_share(t, t.every) == pytest.approx(1 / 3)
    assert fixed_and_broken(t) == (2, 1)
    found = scores(t)
    assert (found.fixed, found.broken) == (2, 1)
    assert found.selectivity.value == pytest.approx(selectivity(t, t.every))
    assert found.at(1.0).control_shift.n == 2 and found.at(1.0).task_kl.n == 3


def test_task_kl_against_a_plain_loop():
    t, total = table(), 0.0
    for _, (_, y0, y1) in TARGETS:
        p, q = ([0.9 / (1 + math.exp(-y)), 0.9 / (1 + math.exp(y)), 0.1] for y in (y0, y1))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert task_kl(t, 1.0, t.every) == pytest.approx(total / 3)
    assert task_kl(t, 0.0, t.every) == 0.0


finite = st.floats(-8, 8).map(lambda x: round(x, 3))
ends = st.tuples(finite, finite, finite)


@given(
    st.lists(st.tuples(st.sampled_from([-1, 1]), ends), min_size=1, max_size=6),
    st.lists(ends, min_size=1, max_size=6),
)
def test_laws(targets, controls):
    t = table(rows(targets, controls))
    mirrored = table(rows([(-label, ys) for label, ys in targets], controls))
    assert task_kl(t, 1.0, t.every) >= -1e-12
    if control_shift(t, 1.0, t.every) + control_shift(t, -1.0, t.every) > 0:
        # Turned labels turn the sign, and nothing else.
        assert selectivity(mirrored, t.every) == pytest.approx(-selectivity(t, t.every))
    else:
        assert math.isnan(selectivity(t, t.every))
    assert fixed_and_broken(mirrored) == fixed_and_broken(t)[::-1]
    still = table(rows([(label, (y, y, y)) for label, (_, y, _) in targets], controls))
    assert against_share(still, still.every) == 0.0 and fixed_and_broken(still) == (0, 0)


def test_invalid_answers_move_nothing():
    some = rows()
    some[-1].answers["1"] = Answer(y=50.0, pmass=0.01, top_token="?")
    t = table(some)
    assert control_shift(t, 1.0, t.every) == pytest.approx(0.25)
    assert np.isfinite(selectivity(t, t.every))


def test_without_controls_there_is_no_selectivity():
    found = scores(table(rows(controls=[])))
    assert math.isnan(found.selectivity.value) and math.isnan(found.at(1.0).control_shift.value)


def test_a_dial_that_says_yes_is_not_selective():
    items = [i for i in load_benchmark("mini-dilemmas").items if i.kind != "target"]
    items += [i for i in load_benchmark("mini-dilemmas").items if "honesty" in i.labels][:40]
    found = {
        name: Table(simulate(items, "honesty", name, 0), "honesty", ENDS, 0.05)
        for name in ("perfect", "yes-sayer")
    }
    yes = scores(found["yes-sayer"])
    assert abs(yes.selectivity.value) < 0.2 and yes.at(1.0).control_shift.value > 0.1
    apart = selectivity_difference(found["perfect"], found["yes-sayer"])
    # The perfect steerer moves no control at all, so that its selectivity is undefined.
    assert math.isnan(apart.value)
    with pytest.raises(ValueError, match="the same questions"):
        selectivity_difference(found["yes-sayer"], table())
