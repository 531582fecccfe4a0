"""A benchmark, a steerer and some coefficients in; every row and its scores out.

    y      log P(answers that match) - log P(the others), nats
    pmass  P(any of the answers); 1 where two whole replies are compared

Legend: c coefficients, q questions, a answers.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks.item import YES_NO, Benchmark, Item
from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.evaluation.questions import Answers, TokenisedQuestion, ask, score_answers
from pasto_cli.core.evaluation.scores import scores
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.records.evaluation import Answer, EvalRun, Row
from pasto_cli.core.records.scores import LabelSign, key
from pasto_cli.core.steering.steerer import Steerer

NEEDED = (-1.0, 0.0, 1.0)
"""The scores compare these coefficients; they are always measured."""


class EvalSettings(NamedTuple):
    """How a benchmark is run and scored."""

    value: str
    """The value whose labels score the rows."""
    coefficients: Sequence[float]
    """-1, 0 and +1 are added where they are missing."""
    pmass_threshold: float
    """Answers with less probability mass on the answers are invalid."""
    node_budget: int
    """Nodes of one token tree."""
    seed: int
    """Seed of the bootstrap and of the label shuffles."""
    label_sign: LabelSign = "own"
    """`original` only to compare with published numbers."""

    @property
    def wanted(self) -> list[float]:
        """Every coefficient that is measured, in order."""
        return sorted({*map(float, self.coefficients), *NEEDED})


def evaluate(
    lm: LoadedModel,
    steerer: Steerer,
    benchmark: Benchmark,
    settings: EvalSettings,
    *,
    provenance: dict[str, Any],
    progress: Callable[[int], None] = lambda _: None,
    questions: Sequence[TokenisedQuestion] | None = None,
    base: Answers | None = None,
) -> EvalRun:
    """Run a benchmark.

    Args:
        lm: The base model.
        steerer: Adapter, prompt or vector.
        benchmark: Items, already cut to size.
        settings: Value, coefficients, threshold and seed.
        provenance: Where adapter and data came from.
        progress: Told how many items each pass has answered.
        questions: The items in tokens (`tokenise`), so that several methods share them.
        base: What the base answers to them (`base_answers`), which is the column at 0 then; None
            asks it now.

    Raises:
        PastoError: If no row of the benchmark carries the value.
    """
    require_value(benchmark, settings.value)
    wanted = settings.wanted
    found = _answers(lm, steerer, benchmark, settings, progress, questions, base)
    rows = _rows(benchmark.items, wanted, found)
    table = Table(
        rows, settings.value, wanted, settings.pmass_threshold, label_sign=settings.label_sign
    )
    return EvalRun(
        benchmark=benchmark.name,
        title=benchmark.title,
        licence=benchmark.licence,
        source=benchmark.source,
        value=settings.value,
        coefficients=wanted,
        pmass_threshold=settings.pmass_threshold,
        label_sign=settings.label_sign,
        partial=benchmark.partial,
        rows=rows,
        scores=scores(table, settings.seed),
        provenance=provenance,
    )


def _answers(
    lm: LoadedModel,
    steerer: Steerer,
    benchmark: Benchmark,
    settings: EvalSettings,
    progress: Callable[[int], None],
    questions: Sequence[TokenisedQuestion] | None,
    base: Answers | None,
) -> Answers:
    """Log-probabilities of all answers at all coefficients, (c, q, a)."""
    budget = settings.node_budget
    steered = [a for a in settings.wanted if a or base is None]
    if steerer.prompt_prefix(0.0) is None:
        # Weights or activations are steered: one pass answers a question at every coefficient.
        asked = questions or tokenise(lm, benchmark)
        found = [score_answers(lm, steerer, asked, steered, budget, progress)]
    else:  # by words: other questions at each coefficient, one pass each
        found = []
        for position, a in enumerate(steered):
            words = steerer.prompt_prefix(a) or ""
            asked = tokenise(lm, benchmark, words) if words or questions is None else questions
            told = progress if position == 0 else lambda _: None  # each question counts once
            found.append(score_answers(lm, steerer, asked, [0.0], budget, told))
    columns = {a: column for a, column in zip(steered, _columns(found), strict=True)}
    if base is not None:
        columns[0.0] = next(_columns([base]))
    log_p, top_token = zip(*(columns[a] for a in settings.wanted), strict=True)
    return Answers(torch.stack(log_p), list(top_token))


def _columns(found: Sequence[Answers]) -> Iterator[tuple[Tensor, list[str]]]:
    """One coefficient after the other: log-probabilities (q, a), likeliest tokens [q]."""
    for answers in found:
        yield from zip(answers.log_p, answers.top_token, strict=True)


def _rows(items: Sequence[Item], wanted: Sequence[float], found: Answers) -> list[Row]:
    """Items and what was answered to them."""
    matching = torch.zeros(found.log_p.shape[1:], dtype=torch.bool)  # (q, a)
    for q, item in enumerate(items):
        matching[q, list(item.matching)] = True
    # A question with fewer answers than the widest has -inf in the rest, which adds nothing.
    positive, negative = (
        found.log_p.masked_fill(~mask, float("-inf")).logsumexp(-1)
        for mask in (matching, ~matching)
    )
    y = positive - negative  # (c, q)
    pmass = torch.logsumexp(found.log_p, -1).exp()  # (c, q)
    whole = torch.tensor([item.whole for item in items], dtype=torch.bool)  # (q,)
    pmass = pmass.masked_fill(whole, 1.0)  # of the two one is taken to be said

    def answer(c: int, q: int) -> Answer:
        return Answer(y=y[c, q].item(), pmass=pmass[c, q].item(), top_token=found.top_token[c][q])

    return [
        Row(
            id=item.id,
            group=item.group,
            kind=item.kind,
            labels=item.labels,
            yes_no=item.answers == YES_NO,
            answers={key(a): answer(c, q) for c, a in enumerate(wanted)},
        )
        for q, item in enumerate(items)
    ]


def tokenise(lm: LoadedModel, benchmark: Benchmark, prefix: str = "") -> list[TokenisedQuestion]:
    """A benchmark's items in tokens.

    Args:
        lm: For its chat template and tokenizer.
        benchmark: The items.
        prefix: Words before each user message, for steerers that work by words.
    """
    found: list[TokenisedQuestion] = []
    for item in benchmark.items:
        prefill = benchmark.prefill if item.prefill is None else item.prefill
        found.append(ask(lm.chat, prefix + item.prompt, prefill, item.answers, whole=item.whole))
    return found


def require_value(benchmark: Benchmark, value: str) -> None:
    """Refuse a value that no row carries.

    Raises:
        PastoError: With the commonest values that there are.
    """
    counts = Counter(v for item in benchmark.items for v in item.labels)
    if value in counts:
        return
    near = difflib.get_close_matches(value, counts, 1)
    values = Counter({v: n for v, n in counts.items() if ": " not in v})  # no classes of frameworks
    common = ", ".join(v for v, _ in values.most_common(8))
    raise PastoError(
        f"no row of {benchmark.name} is labelled for {value!r}",
        f"Did you mean --value {near[0]!r}?"
        if near
        else f"Its commonest values are {common} (--value).",
    )
