"""A benchmark, a steerer and some coefficients in; every row and its figures out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pasto_cli.core.answers import ask, score_answers
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

    Raises:
        PastoError: If no row of the benchmark carries the value, or it has no controls.
    """
    known = sorted({v for item in benchmark.items for v in item.labels})
    if value not in known:
        raise PastoError(
            f"no row of {benchmark.name} is labelled for {value!r}",
            f"Set evaluation.value to one of its {len(known)} values, such as {', '.join(known[:8])}.",
        )
    wanted = sorted({*map(float, coefficients), *NEEDED})
    questions = [ask(lm.chat, item.prompt, benchmark.prefill) for item in benchmark.items]
    found = score_answers(lm, steerer, questions, wanted, budget, progress)
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
        scores=scores(Table(rows, value, wanted, pmass_threshold), seed), provenance=provenance,
    )  # fmt: skip
