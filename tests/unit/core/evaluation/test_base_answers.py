"""What the base answers to a benchmark: asked once, kept, and the column at 0 of every method."""

from dataclasses import replace

import pytest
import torch

from pasto_cli.base.cache import cache_dir
from pasto_cli.core.evaluation import base_answers as module
from pasto_cli.core.evaluation.base_answers import base_answers
from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.core.evaluation.evaluator import EvalSettings, evaluate, tokenise
from pasto_cli.core.evaluation.questions import ask, score_answers
from pasto_cli.core.steering.steerer import AdapterSteerer, NoOpSteerer, PromptSteerer

SETTINGS = EvalSettings("honesty", (-1.0, 0.5), 0.0, 512, 0)


@pytest.fixture()
def lm(tiny):
    return replace(tiny(), commit="sha256:of-some-file")


@pytest.fixture()
def questions(lm):
    """Of unlike numbers of answers."""
    return [ask(lm.chat, "Well?", "My choice:"), ask(lm.chat, "Which?", "My choice: (", "ABCD")]


@pytest.fixture()
def counted(monkeypatch):
    """How many questions the model was asked rather than the disk."""
    asked = []
    monkeypatch.setattr(
        module, "score_answers", lambda *args: asked.append(len(args[2])) or score_answers(*args)
    )
    return asked


def test_a_second_time_asks_nobody_and_says_the_same(lm, questions, counted):
    expected = score_answers(lm, NoOpSteerer(), questions, [0.0], 512)
    for _ in range(2):
        told = []
        found = base_answers(lm, questions, 512, told.append)
        assert torch.equal(found.log_p, expected.log_p)  # -inf included
        assert found.log_p.dtype == torch.float64 and found.top_token == expected.top_token
        assert sum(told) == len(questions)
    assert counted == [2]


def test_what_answers_depend_on_asks_again(lm, tiny, questions, counted):
    base_answers(lm, questions, 512)
    for model, some, budget in (
        (lm, questions, 64),
        (lm, questions[:1], 512),
        (lm, [questions[0], questions[1]._replace(answers=questions[1].answers[:2])], 512),
        (replace(lm, commit="sha256:of-another"), questions, 512),
        (replace(lm, autocast=True), questions, 512),
    ):
        before = len(counted)
        base_answers(model, some, budget)
        assert len(counted) == before + 1
    nameless = tiny()
    assert nameless.commit is None
    for _ in range(2):
        base_answers(nameless, questions, 512)
    assert len(counted) == 8


@pytest.mark.parametrize("content", ["", "{", '{"log_p": [[-1.0]], "top_token": ["a"]}'])
def test_a_damaged_file_is_asked_for_again(lm, questions, counted, content):
    whole = base_answers(lm, questions, 512)
    (path,) = (cache_dir() / "answers").iterdir()
    path.write_text(content)
    for _ in range(2):
        assert torch.equal(base_answers(lm, questions, 512).log_p, whole.log_p)
    assert len(counted) == 2


@pytest.mark.parametrize("kind", ["adapter", "words"])
def test_methods_with_the_known_base_are_as_without(lm, make_adapter, kind):
    items = subset(load_benchmark("mini-dilemmas"), "honesty", 3, 0)
    items = items._replace(items=items.items[:8])
    steerer = (
        AdapterSteerer(make_adapter(lm), lm)
        if kind == "adapter"
        else PromptSteerer("honest", "dishonest")
    )
    asked = tokenise(lm, items)
    known = base_answers(lm, asked, 512)
    one = evaluate(lm, steerer, items, SETTINGS, provenance={})
    two = evaluate(lm, steerer, items, SETTINGS, provenance={}, questions=asked, base=known)
    assert one.coefficients == two.coefficients == [-1.0, 0.0, 0.5, 1.0]
    yes_no = known.log_p[0, :, 0] - known.log_p[0, :, 1]
    for row, other, y in zip(one.rows, two.rows, yes_no, strict=True):
        assert list(row.answers) == list(other.answers)
        for a, answer in row.answers.items():
            assert answer.y == pytest.approx(other.answers[a].y, abs=1e-4)
            assert answer.top_token == other.answers[a].top_token
        assert abs(other.answers["0"].y) == pytest.approx(abs(y.item()), abs=1e-12)
