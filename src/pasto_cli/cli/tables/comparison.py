"""The dial beside its baselines."""

import math
from collections.abc import Sequence
from typing import Any

from pasto_cli.base.format import (
    format_coefficient,
    format_estimate,
    format_optional,
    format_share,
)
from pasto_cli.cli.console import out, print_json
from pasto_cli.cli.tables.common import Figures, format_f1, say, what_was_asked
from pasto_cli.cli.tables.seeds import show_spread
from pasto_cli.core.evaluation.disturbance import LARGEST_COEFFICIENT
from pasto_cli.core.evaluation.seeds import across_seeds
from pasto_cli.workflows.compare import Method


def show_comparisons(found: Sequence[Sequence[Method]], json: bool) -> None:
    """Each dial beside its baselines, and what several dials have in common."""
    across = across_seeds([methods[0].run for methods in found]) if len(found) > 1 else {}
    if json:
        records = [[_comparison_record(method) for method in methods] for methods in found]
        spreads = {name: spread.model_dump() for name, spread in across.items()}
        print_json({"runs": records, "across": spreads} if across else records[0])
        return
    for methods in found:
        if across:
            facts = methods[0].run.provenance
            say(f"\n{facts['adapter']}, training seed {facts['training_seed']}", style="bold")
        _show_comparison(methods)
    if across:
        show_spread(across, len(found))


def _show_comparison(methods: Sequence[Method]) -> None:
    """The dial and its baselines: what they cost, what they move at each end, and on the whole."""
    say(f"{what_was_asked(methods[0].run)}; brackets are 95 % intervals")
    for make in (_cost_table, _ends_table, _whole_table, _f1_table, _rows_table):
        out.print(make(methods))


def _comparison_record(method: Method) -> dict[str, Any]:
    run = method.run
    return {
        "method": method.name,
        "coefficients": method.coefficients,
        "scores": run.scores.model_dump(),
        "disturbance": {c: d.model_dump() for c, d in run.disturbance.items()},
    }


def _cost_table(methods: Sequence[Method]) -> Figures:
    table = Figures(
        "method",
        "at",
        "coefficient",
        "KL p95, nats [95 %]",
        "NLL shift, nats [95 %]",
        "P(answers)",
        "invalid",
        labels=2,
    )
    for method in methods:
        for end, size in zip((1.0, -1.0), method.coefficients, strict=True):
            e, d = method.run.scores.at(end), method.run.disturbance_at(end)
            table.add_row(
                method.name,
                format_coefficient(end),
                _own_coefficient(method.name, end * size),
                format_estimate(d.kl_p95, signed=False),
                format_estimate(d.nll_shift),
                f"{e.pmass:.3f}",
                str(e.invalid),
            )
    return table


def _own_coefficient(method: str, coefficient: float) -> str:
    if "prompt" in method:
        return "words"
    if abs(coefficient) < LARGEST_COEFFICIENT:
        return f"{coefficient:+.3g}"
    return f"{coefficient:+g}, falls short"  # the largest that was tried, and what was measured


def _ends_table(methods: Sequence[Method]) -> Figures:
    table = Figures(
        "method",
        "at",
        "score shift [95 %]",
        "acquiescence [95 %]",
        "control shift [95 %]",
        labels=2,
    )
    for method in methods:
        for end in (1.0, -1.0):
            e = method.run.scores.at(end)
            shift, acquiescence = format_estimate(e.shift), format_estimate(e.acquiescence)
            control = format_optional(e.control_shift, signed=False)
            table.add_row(method.name, format_coefficient(end), shift, acquiescence, control)
    return table


def _whole_table(methods: Sequence[Method]) -> Figures:
    table = Figures(
        "method",
        "slope, nats [95 %]",
        "minus the adapter's",
        "selectivity [95 %]",
        "minus the adapter's",
    )
    for method in methods:
        s = method.run.scores
        table.add_row(
            method.name,
            format_estimate(s.slope),
            format_optional(s.slope_minus_adapter),
            format_optional(s.selectivity),
            format_optional(s.selectivity_minus_adapter),
        )
    return table


def _f1_table(methods: Sequence[Method]) -> Figures:
    table = Figures(
        "method",
        "Steering F1 [95 %]",
        "by chance",
        "control flips",
    )
    for method in methods:
        s, chance = method.run.scores, method.run.scores.chance
        table.add_row(
            method.name,
            format_f1(s.steering_f1),
            "" if math.isnan(chance.p) else f"{chance.mean:.1f}, p = {chance.p:.3f}",
            format_share(s.parts.arbitrary_rate),
        )
    return table


def _rows_table(methods: Sequence[Method]) -> Figures:
    table = Figures(
        "method", "rows fixed, broken", "rows against the dial [95 %]", "KL on the task +1 / -1"
    )
    for method in methods:
        s = method.run.scores
        kl = [s.at(c).task_kl for c in (1.0, -1.0)]
        table.add_row(
            method.name,
            f"{s.fixed}, {s.broken}",
            format_optional(s.against_share, signed=False),
            " / ".join("" if x is None else f"{x.value:.2f}" for x in kl),
        )
    return table
