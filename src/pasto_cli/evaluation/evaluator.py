"""A benchmark, a steerer and some coefficients in; every row and its figures out."""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from pasto_cli.core.answers import Answers, ask, score_answers
from pasto_cli.core.models import LoadedModel
from pasto_cli.core.steering import Steerer
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks import Benchmark
from pasto_cli.evaluation.metrics import Table, scores
from pasto_cli.evaluation.results import Answer, EvalRun, Row, key

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

    Raises:
        PastoError: If no row of the benchmark carries the value, or it has no controls.
    """
    require_value(benchmark, value)
    wanted = sorted({*map(float, coefficients), *NEEDED})
    found = _answers(lm, steerer, benchmark, wanted, budget, progress)
    y = found.log_p[..., 0] - found.log_p[..., 1]  # (c, q)
    pmass = torch.logsumexp(found.log_p, -1).exp()
    rows = [
        Row(
            id=item.id, group=item.group, kind=item.kind, labels=item.labels,
            answers={
                key(a): Answer(y=y[c, q].item(), pmass=pmass[c, q].item(), said=found.said[c][q]) for c, a in enumerate(wanted)
            },
        )
        for q, item in enumerate(benchmark.items)
    ]  # fmt: skip
    return EvalRun(
        benchmark=benchmark.name, title=benchmark.title, licence=benchmark.licence, source=benchmark.source, value=value,
        coefficients=wanted, pmass_threshold=pmass_threshold, partial=benchmark.partial, rows=rows,
        scores=scores(Table(rows, value, wanted, pmass_threshold, label_sign=label_sign), seed), provenance=provenance,
        label_sign=label_sign,
    )  # fmt: skip


def _answers(
    lm: LoadedModel,
    steerer: Steerer,
    benchmark: Benchmark,
    wanted: Sequence[float],
    budget: int,
    progress: Callable[[int], None],
) -> Answers:
    """All coefficients in one pass; a steerer that works by words has its own prompts at each coefficient."""
    lead: Callable[[float], str] | None = getattr(steerer, "lead", None)
    if lead is None:
        questions = [ask(lm.chat, item.prompt, benchmark.prefill) for item in benchmark.items]
        return score_answers(lm, steerer, questions, wanted, budget, progress)
    each = []
    for position, a in enumerate(wanted):
        questions = [ask(lm.chat, lead(a) + item.prompt, benchmark.prefill) for item in benchmark.items]
        each.append(score_answers(lm, steerer, questions, [0.0], budget, progress if position == 0 else lambda _: None))
    return Answers(torch.cat([x.log_p for x in each]), [x.said[0] for x in each])


def require_value(benchmark: Benchmark, value: str) -> None:
    """Refuse a value that no row carries.

    Raises:
        PastoError: With the commonest values that there are.
    """
    counts = Counter(v for item in benchmark.items for v in item.labels)
    if value not in counts:
        near = difflib.get_close_matches(value, counts, 1)
        there = ", ".join(v for v, _ in counts.most_common(8))
        raise PastoError(
            f"no row of {benchmark.name} is labelled for {value!r}",
            f"Did you mean --value {near[0]!r}?" if near else f"Its commonest values are {there} (--value).",
        )
