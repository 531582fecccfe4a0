"""Free text: sentiment of greedy answers to neutral open prompts, by VADER (Hutto and Gilbert
2014). No torch.

Where a model is too small for dilemmas, its texts may still show an axis such as cheerful against
gloomy. Repetition and length stand beside the score, since a text that falls apart has a sentiment
too."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pasto_cli.base.statistics import Estimate, cluster_bootstrap
from pasto_cli.core.records.evaluation import SentimentRun, Text, key


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
        seed: Of the bootstrap over prompts.
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
    shape = (len(prompts), len(coefficients))
    columns = {
        name: np.array([getattr(r, name) for r in rows], float).reshape(shape)
        for name in ("sentiment", "distinct", "words")
    }

    def estimate(statistic: Any) -> dict[str, Any]:
        found: Estimate = cluster_bootstrap(statistic, list(map(str, range(len(prompts)))), seed)
        return found._asdict()

    x = np.array(coefficients) - np.mean(coefficients)
    slope = columns["sentiment"] @ x / (x @ x)  # of each prompt
    each = {
        key(a): {
            name: estimate(lambda i, v=values[:, c]: float(v[i].mean()))
            for name, values in columns.items()
        }
        for c, a in enumerate(coefficients)
    }
    return SentimentRun(
        coefficients=list(coefficients),
        texts=rows,
        provenance=provenance,
        scores={
            "slope": estimate(lambda i: float(slope[i].mean())),
            "coefficients": each,
            "n_prompts": len(prompts),
        },
    )


def distinct_share(text: str) -> float:
    """Different words (case aside) as a share of all; 0 for an empty text."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0
