"""Greedy answers of the base that are kept on disk."""

from dataclasses import replace

import pytest

from pasto_cli.base.cache import cache_dir
from pasto_cli.core.steering import kept_answers
from pasto_cli.core.steering.generation import greedy_answers
from pasto_cli.core.steering.kept_answers import kept_greedy_answers

PROMPTS = ("What is your name?", "Say hello.", "Count to three.", "Name a colour, please.")


@pytest.fixture()
def lm(tiny):
    return replace(tiny(), commit="sha256:of-some-file")


@pytest.fixture()
def counted(monkeypatch):
    """How often the model was asked rather than the disk."""
    calls = []
    monkeypatch.setattr(
        kept_answers, "greedy_answers", lambda *args: calls.append(1) or greedy_answers(*args)
    )
    return calls


def prompts_of(lm):
    return [lm.chat.prompt(prompt) for prompt in PROMPTS]


def test_a_second_time_asks_nobody_and_says_the_same(lm, counted):
    rows = prompts_of(lm)
    expected = greedy_answers(lm, rows, 5)
    for _ in range(2):
        told = []
        assert kept_greedy_answers(lm, rows, 5, told.append) == expected
        assert sum(told) == len(PROMPTS)
    assert len(counted) == 1


def test_what_answers_depend_on_asks_again(lm, tiny, counted):
    rows = prompts_of(lm)
    kept_greedy_answers(lm, rows, 5)
    other = tiny("qwen3")
    for model, some, tokens in (
        (lm, rows, 4),
        (lm, rows[:3], 5),
        (replace(lm, commit="sha256:of-another"), rows, 5),
        (replace(lm, spec=lm.spec.model_copy(update={"source": "another"})), rows, 5),
        (replace(other, commit="sha256:of-some-file"), prompts_of(other), 5),
    ):
        before = len(counted)
        found = kept_greedy_answers(model, some, tokens)
        assert len(counted) == before + 1 and found == greedy_answers(model, some, tokens)


def test_a_base_without_a_name_is_always_asked(tiny, counted):
    lm = tiny()
    assert lm.commit is None
    for _ in range(2):
        kept_greedy_answers(lm, prompts_of(lm), 3)
    assert len(counted) == 2 and not (cache_dir() / "answers").exists()


def test_an_interrupted_asking_keeps_nothing(lm, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_answers, "greedy_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept_greedy_answers(lm, prompts_of(lm), 3)
    assert not (cache_dir() / "answers").exists()
