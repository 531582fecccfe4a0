"""Tables of figures on terminals of any width: no figure is cut, every part says whose it is."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pasto_cli.cli.tables.common import Figures
from tests.support.examples import examples

HEADERS = ("method", "at", "slope, nats [95 %]", "minus the adapter's", "KL", "invalid")


def printed(width, rows, labels):
    table = Figures(*HEADERS, labels=labels)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=width, emoji=False).print(table)
    return text.getvalue()


figure = st.from_regex(r"[+-][0-9]\.[0-9]{2} \[[+-][0-9]\.[0-9]{2}\]", fullmatch=True)


@examples(40)
@given(
    st.lists(st.lists(figure, min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(50, 130),
    st.integers(1, 2),
)
def test_no_figure_is_cut_and_no_row_loses_its_name(figures, width, labels):
    rows = [(f"method-{n}", "+1", *each) for n, each in enumerate(figures)]
    text = printed(width, rows, labels)
    assert max(map(len, text.splitlines())) <= width
    parts = text.count("┏")
    for row in rows:
        own = [line for line in text.splitlines() if f"│ {row[0]} " in line]
        assert len(own) == parts
        for cell in row[labels:]:
            assert any(f" {cell} │" in line for line in own)


@pytest.mark.parametrize(("width", "parts"), [(110, 1), (80, 2)])
def test_one_table_where_it_fits(width, parts):
    row = ("control-vector", "+1", "+0.30 [+0.24, +0.37]", "-0.10 [-0.20, -0.01]", "1.00", "0")
    assert printed(width, [row], 2).count("┏") == parts


def test_a_long_name_is_folded():
    row = ("runs/" + "x" * 90, "+1", "+0.30 [+0.24, +0.37]", "-0.10 [-0.20, -0.01]", "1.00", "0")
    text = printed(80, [row], 2)
    assert text.count("x") >= 90 * text.count("┏") and "+0.30 [+0.24, +0.37] │" in text
