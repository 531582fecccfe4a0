"""Free text: sentiment of greedy answers to neutral open prompts. No torch.

    sentiment   VADER's compound score of a text, -1 to 1 (Hutto and Gilbert, VADER, ICWSM 2014)
    distinct    different words as a share of all words
    slope       least-squares slope of the sentiment over the coefficients, mean over prompts

Where a model is too small for dilemmas, its texts may still show an axis such as cheerful against
gloomy. Repetition and length stand beside the score, since a text that falls apart has a sentiment
too. Legend: n prompts, c coefficients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pasto_cli.base.statistics import Estimate, Floats, Indices, cluster_bootstrap
from pasto_cli.core.records.evaluation import SentimentRun, Text
from pasto_cli.core.records.scores import CoefficientSentiment, SentimentScores, key


def score_texts(
    prompts: Sequence[str],
    coefficients: Sequence[float],
    texts: Sequence[Sequence[str]],
    seed: int,
    provenance: dict[str, Any],
) -> SentimentRun:
    """Score answers.

    Args:
        prompts: n prompts.
        coefficients: c coefficients, at least two different ones.
        texts: [n][c] answers.
        seed: Seed of the bootstrap over prompts.
        provenance: Recorded with the result.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    rows = [
        Text(
            prompt=prompt,
            coefficient=a,
            text=text,
            sentiment=analyser.polarity_scores(text)["compound"],
            distinct=distinct_share(text),
            words=len(text.split()),
        )
        for prompt, answers in zip(prompts, texts, strict=True)
        for a, text in zip(coefficients, answers, strict=True)
    ]
    return SentimentRun(
        coefficients=list(coefficients),
        texts=rows,
        provenance=provenance,
        scores=_scores(rows, len(prompts), coefficients, seed),
    )


def _scores(
    rows: Sequence[Text], num_prompts: int, coefficients: Sequence[float], seed: int
) -> SentimentScores:
    """Means over prompts, with intervals over them."""

    def column(read: Callable[[Text], float]) -> Floats:  # (n, c)
        return np.array([read(r) for r in rows], float).reshape(num_prompts, len(coefficients))

    def mean(x: Floats) -> Estimate:  # (n,): each prompt is a cluster of its own
        def statistic(index: Indices) -> float:
            return float(x[index].mean())

        return cluster_bootstrap(statistic, [str(i) for i in range(num_prompts)], seed)

    sentiment = column(lambda r: r.sentiment)
    distinct, words = column(lambda r: r.distinct), column(lambda r: r.words)
    x = np.array(coefficients) - np.mean(coefficients)  # (c,)
    each = {
        key(a): CoefficientSentiment(
            sentiment=mean(sentiment[:, c]), distinct=mean(distinct[:, c]), words=mean(words[:, c])
        )
        for c, a in enumerate(coefficients)
    }
    slope = sentiment @ x / (x @ x)  # (n,)
    return SentimentScores(slope=mean(slope), coefficients=each, n_prompts=num_prompts)


def distinct_share(text: str) -> float:
    """Different words (case aside) as a share of all; 0 for an empty text."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0
