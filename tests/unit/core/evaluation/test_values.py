"""Shifts of every value: effects, intervals, false-discovery rate, frameworks."""

import numpy as np
import pytest

from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.oracles import simulate
from pasto_cli.core.evaluation.values import MINIMUM, value_shifts
from pasto_cli.core.records.evaluation import Answer, Row


def made(count, effect, seed, value="care", noise=1.0):
    """Rows of `count` dilemmas whose score moves by effect and noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(count):
        for side, label in (("to_do", 1), ("not_to_do", -1)):
            move = label * (effect + rng.normal(0, noise))
            y = {a: Answer(y=float(a) * move, pmass=1.0, said="") for a in ("-1", "0", "1")}
            rows.append(
                Row(
                    id=f"{value}{g}/{side}",
                    group=f"{value}{g}",
                    kind="target",
                    labels={value: label},
                    answers=y,
                )
            )
    return rows


def test_effect_is_half_the_way_from_one_end_to_the_other():
    (found,) = value_shifts(made(30, 0.5, 0, noise=0.2), 0.05).values
    assert found.effect == pytest.approx(0.5, abs=0.1) and found.low < 0.5 < found.high
    assert found.up == pytest.approx(found.effect) and found.down == pytest.approx(-found.effect)
    assert (found.rows, found.dilemmas, found.moved) == (60, 30, True)


def test_the_dilemma_is_the_observation():
    """Both rows of a dilemma say the same here: the interval is that of the dilemmas, not of twice
    as many rows."""
    rows = made(30, 0.0, 1)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        second.answers.update(
            {a: x.model_copy(update={"y": -x.y}) for a, x in first.answers.items()}
        )
    (found,) = value_shifts(rows, 0.05).values
    x = np.array([r.answers["1"].y for r in rows[::2]])
    assert found.high - found.low == pytest.approx(2 * 2.045 * x.std(ddof=1) / 30**0.5, rel=1e-3)


def test_false_discoveries_are_controlled():
    """Of 40 values none of which moves, none is reported in most of 20 tries; uncorrected, about
    two would be each time."""
    reported, uncorrected = 0, 0
    for seed in range(20):
        rows = [row for v in range(40) for row in made(12, 0.0, 1000 * seed + v, f"v{v}")]
        found = value_shifts(rows, 0.05).values
        assert len(found) == 40
        reported += any(s.moved for s in found)
        uncorrected += sum(s.p < 0.05 for s in found)
    assert reported <= 4 and uncorrected > 20


def test_rare_values_are_left_out_and_invalid_answers_do_not_count():
    rows = made(MINIMUM // 2 - 1, 1.0, 0)
    assert value_shifts(rows, 0.05).values == []
    rows = made(MINIMUM // 2, 1.0, 0)
    assert len(value_shifts(rows, 0.05).values) == 1
    rows[0].answers["1"].pmass = 0.01
    assert value_shifts(rows, 0.05).values == []


def test_a_perfect_steerer_moves_its_value_and_its_classes(dailydilemmas):
    """On the real item structure, frameworks included: truthfulness is honesty's class among the
    virtues."""
    items = load_benchmark("dailydilemmas", str(dailydilemmas)).items
    found = value_shifts(simulate(items, "honesty", "perfect", 0), 0.05)
    honesty = next(s for s in found.values if s.name == "honesty")
    assert honesty.effect == pytest.approx(3.0) and honesty.moved
    classes = {s.name: s for s in found.frameworks}
    assert {name.split(":")[0] for name in classes} == {"wvs", "mft", "virtue", "emotion", "maslow"}
    assert classes["virtue: truthfulness"].moved and classes["virtue: truthfulness"].effect > 2
    nothing = value_shifts(simulate(items, "honesty", "random", 0), 0.05)
    assert sum(s.moved for s in (*nothing.values, *nothing.frameworks)) <= 2
