"""Commands that a user is told to type."""

import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.shell import pasto
from tests.support.examples import examples


def test_a_path_with_spaces_is_one_word():
    assert pasto("eval", Path("my runs/a b")) == "pasto eval 'my runs/a b'"
    assert pasto("eval", Path("runs/a")) == "pasto eval runs/a"


@examples(50)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
def test_a_shell_reads_the_words_that_were_given(words):
    assert shlex.split(pasto(*words)) == ["pasto", *words]
