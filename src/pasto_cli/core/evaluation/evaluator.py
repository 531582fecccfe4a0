"""A benchmark, a steerer and some coefficients in; every row and its figures out."""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import Benchmark
from pasto_cli.core.evaluation.benchmarks.item import YES_NO
from pasto_cli.core.evaluation.metrics import Table, scores
from pasto_cli.core.evaluation.questions import Answers, TokenisedQuestion, ask, score_answers
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.records.evaluation import Answer, EvalRun, Row, key
from pasto_cli.core.steering.steerer import Steerer

NEEDED = (-1.0, 0.0, 1.0)
"""The scores compare these coefficients; they are always measured."""


def evaluate(
    lm: LoadedModel,
    steerer: Steerer,
    benchmark: Benchmark,
    value: str,
    coefficients: Sequence[float],
    pmass_threshold: float,
    budget: int,
    seed: int,
    provenance: dict[str, Any],
    progress: Callable[[int], None] = lambda _: None,
    label_sign: Literal["own", "original"] = "own",
    questions: Sequence[TokenisedQuestion] | None = None,
) -> EvalRun:
    """Run a benchmark.

    Args:
        lm: The base model.
        steerer: Adapter, prompt or vector.
        benchmark: Items, already cut to size.
        value: The value whose labels score the rows.
        coefficients: -1, 0 and +1 are added where they are missing.
        pmass_threshold: For invalid answers.
        budget: Nodes of one token tree.
        seed: Of the bootstrap.
        provenance: Where adapter and data came from.
        progress: Told how many items each pass has answered.
        label_sign: `original` only to compare with published figures.
        questions: The items in tokens (`tokenise`), so that several methods share them.

    Raises:
        PastoError: If no row of the benchmark carries the value, or it has no controls.
    """
    require_value(benchmark, value)
    wanted = sorted({*map(float, coefficients), *NEEDED})
    found = _answers(lm, steerer, benchmark, wanted, budget, progress, questions)
    matching = torch.zeros(found.log_p.shape[1:], dtype=torch.bool)  # (q, a)
    for q, item in enumerate(benchmark.items):
        matching[q, list(item.matching)] = True
    positive, negative = (
        found.log_p.masked_fill(~m, float("-inf")).logsumexp(-1) for m in (matching, ~matching)
    )
    y = positive - negative  # (c, q)
    pmass = torch.logsumexp(found.log_p, -1).exp()
    rows = [
        Row(
            id=item.id,
            group=item.group,
            kind=item.kind,
            labels=item.labels,
            yes_no=item.answers == YES_NO,
            answers={
                key(a): Answer(
                    y=y[c, q].item(), pmass=pmass[c, q].item(), said=found.top_token[c][q]
                )
                for c, a in enumerate(wanted)
            },
        )
        for q, item in enumerate(benchmark.items)
    ]
    return EvalRun(
        benchmark=benchmark.name,
        title=benchmark.title,
        licence=benchmark.licence,
        source=benchmark.source,
        value=value,
        coefficients=wanted,
        pmass_threshold=pmass_threshold,
        partial=benchmark.partial,
        rows=rows,
        scores=scores(Table(rows, value, wanted, pmass_threshold, label_sign=label_sign), seed),
        provenance=provenance,
        label_sign=label_sign,
    )


def _answers(
    lm: LoadedModel,
    steerer: Steerer,
    benchmark: Benchmark,
    wanted: Sequence[float],
    budget: int,
    progress: Callable[[int], None],
    questions: Sequence[TokenisedQuestion] | None,
) -> Answers:
    """All coefficients in one pass; a steerer that works by words has its own prompts at each
    coefficient."""
    if steerer.prompt_prefix(0.0) is None:
        return score_answers(
            lm, steerer, questions or tokenise(lm, benchmark), wanted, budget, progress
        )
    each = []
    for position, a in enumerate(wanted):
        words = steerer.prompt_prefix(a) or ""
        asked = tokenise(lm, benchmark, words) if words or questions is None else questions
        each.append(
            score_answers(
                lm, steerer, asked, [0.0], budget, progress if position == 0 else lambda _: None
            )
        )
    return Answers(torch.cat([x.log_p for x in each]), [x.top_token[0] for x in each])


def tokenise(lm: LoadedModel, benchmark: Benchmark, prefix: str = "") -> list[TokenisedQuestion]:
    """A benchmark's items in tokens.

    Args:
        lm: For its chat template and tokenizer.
        benchmark: The items.
        prefix: Words before each user message, for steerers that work by words.
    """
    return [
        ask(
            lm.chat,
            prefix + item.prompt,
            benchmark.prefill if item.prefill is None else item.prefill,
            item.answers,
        )
        for item in benchmark.items
    ]


def require_value(benchmark: Benchmark, value: str) -> None:
    """Refuse a value that no row carries.

    Raises:
        PastoError: With the commonest values that there are.
    """
    counts = Counter(v for item in benchmark.items for v in item.labels)
    values = Counter({v: n for v, n in counts.items() if ": " not in v})
    if value not in counts:
        near = difflib.get_close_matches(value, counts, 1)
        there = ", ".join(v for v, _ in values.most_common(8))
        raise PastoError(
            f"no row of {benchmark.name} is labelled for {value!r}",
            f"Did you mean --value {near[0]!r}?"
            if near
            else f"Its commonest values are {there} (--value).",
        )
