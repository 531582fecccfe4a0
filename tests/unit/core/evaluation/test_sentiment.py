"""Sentiment of texts: the scores, their slope and its interval."""

import math

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from pasto_cli.core.evaluation.sentiment import distinct_share, score_texts
from pasto_cli.core.records.evaluation import SentimentRun

GLAD, PLAIN, SAD = (
    "What a wonderful, happy day!",
    "The table has four legs.",
    "This is a terrible, miserable loss.",
)


def test_slope_of_texts_that_brighten():
    run = score_texts(["a", "b", "c"], [-1.0, 0.0, 1.0], [[SAD, PLAIN, GLAD]] * 3, 0, {})
    vader = SentimentIntensityAnalyzer()
    ends = [vader.polarity_scores(t)["compound"] for t in (SAD, GLAD)]
    assert run.scores.slope.value == pytest.approx((ends[1] - ends[0]) / 2)
    assert run.scores.at(0.0).sentiment.value == 0 and run.scores.n_prompts == 3
    assert [t.sentiment for t in run.texts[:3]] == pytest.approx([ends[0], 0, ends[1]])
    turned = score_texts(["a", "b", "c"], [-1.0, 0.0, 1.0], [[GLAD, PLAIN, SAD]] * 3, 0, {})
    assert turned.scores.slope.value == pytest.approx(-run.scores.slope.value)


def test_prompts_are_the_observations():
    texts = [[SAD, GLAD]] * 5 + [[GLAD, SAD]] * 5
    slope = score_texts([str(i) for i in range(10)], [-1.0, 1.0], texts, 0, {}).scores.slope
    assert slope.clusters == 10 and slope.low < 0 < slope.high


def test_repetition_and_empty_texts():
    assert distinct_share("to be or not to be") == pytest.approx(4 / 6)
    assert distinct_share("") == 0
    run = score_texts(["a", "b"], [0.0, 1.0], [["", "so so so so"], [PLAIN, ""]], 0, {})
    assert run.scores.at(1.0).words.value == 2 and math.isfinite(run.scores.slope.value)


def test_round_trip():
    run = score_texts(["a", "b"], [0.0, 1.0], [[PLAIN, GLAD]] * 2, 0, {"seed": 1})
    assert SentimentRun.model_validate_json(run.model_dump_json()) == run
