"""When a training is not worth going on with."""

from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.workflows.tune.trial import is_behind


def curve(*values):
    return {f"{(i + 1) / len(values):.2f}": value for i, value in enumerate(values)}


OTHERS = [curve(1, 2, 3, 4), curve(1, 3, 2, 5), curve(0, 0, 1, 1), curve(2, 2, 2, 2)]


def test_by_hand():
    """Half-way the others had reached 2, 3, 0 and 2 at best: their median is 2."""
    assert "the median of 4 others was +2.00" in is_behind({"0.25": 1.0, "0.50": 1.9}, OTHERS)
    assert not is_behind({"0.25": 1.0, "0.50": 2.0}, OTHERS)
    assert not is_behind({"0.25": 2.5, "0.50": 0.0}, OTHERS)  # what it reached counts
    assert not is_behind({"0.50": 0.0}, OTHERS[:3])  # too few to say
    assert not is_behind({"0.25": -9.0}, OTHERS)  # too early to say
    assert not is_behind({"0.50": 1.0, "1.00": 1.0}, OTHERS)  # it has ended


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=4, max_size=9),
    st.integers(2, 3),
)
def test_at_most_half_of_all_could_be_pruned(rows, upto):
    """Nothing that is as good as the median is ever ended, whatever the curves look like."""
    curves = [curve(*row) for row in rows]
    ended = [bool(is_behind({k: c[k] for k in list(c)[:upto]}, curves)) for c in curves]
    assert sum(ended) <= len(rows) / 2


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(0, 3))
def test_more_strength_is_never_pruned_sooner(row, more):
    half = {k: v for k, v in curve(*row).items() if float(k) <= 0.5}
    better = {k: v + more for k, v in half.items()}
    assert bool(is_behind(half, OTHERS)) >= bool(is_behind(better, OTHERS))
