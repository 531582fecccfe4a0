"""Scores of one dial, or of several and what they have in common."""

import json as library
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pasto_cli.base.format import (
    format_coefficient,
    format_estimate,
    format_optional,
    format_share,
)
from pasto_cli.base.statistics import Estimate, Spread
from pasto_cli.cli.console import out, print_json
from pasto_cli.cli.tables.common import Figures, format_f1, say, warn_of_sign, what_was_asked
from pasto_cli.cli.tables.seeds import show_spread
from pasto_cli.core.records.evaluation import (
    ControlKind,
    EvalDetails,
    EvalRun,
    Evaluated,
    SentimentRun,
    ValueShift,
    ValueShifts,
    dump,
)
from pasto_cli.core.records.scores import Scores
from pasto_cli.workflows.evaluate import Measured

SHOWN_VALUES = 8
"""Values that are named, of those that a dial moves."""


def show_runs(found: Sequence[Measured], across: Mapping[str, Spread], json: bool) -> None:
    """Scores of one run or of several, and what several have in common."""
    if json:
        records = [_json_of(measured.run) for measured in found]
        spreads = {name: spread.model_dump() for name, spread in across.items()}
        print_json({"runs": records, "across": spreads} if len(found) > 1 else records[0])
        return
    for measured in found:
        if len(found) > 1:
            facts = measured.run.provenance
            say(f"\n{facts['adapter']}, training seed {facts['training_seed']}", style="bold")
        if isinstance(measured.found, Evaluated):
            _show_dilemmas(*measured.found)
        else:
            _show_sentiment(measured.found)
        if measured.path:
            say(f"every row: {measured.path}")
    if across:
        show_spread(across, len(found))


def _json_of(run: EvalRun | SentimentRun) -> Any:
    return library.loads(dump(run) if isinstance(run, EvalRun) else run.model_dump_json())


def _show_dilemmas(run: EvalRun, details: EvalDetails) -> None:
    s = run.scores
    warn_of_sign(run.label_sign)
    part = " (part of the benchmark)" if run.partial else ""
    say(f"{what_was_asked(run)}{part}")
    _show_coefficients(run)
    _show_disturbance(run)
    if len(details.controls) > 1:
        _show_controls(details.controls)
    _show_summary(s)
    if details.shifts is not None:
        _show_values(details.shifts)
    if details.invalid_top_tokens:
        tokens = ", ".join(f"{text!r} ({n})" for text, n in details.invalid_top_tokens)
        say(f"invalid answers began with: {tokens}")
    if math.isnan(s.steering_f1.value):
        say(
            f"Scores are undefined: less than {run.pmass_threshold:.0%} of the probability lies on "
            f"the answers."
        )
    elif s.slope.holds(0.0):
        say(
            "The interval of the slope holds 0: this evaluation does not show that the dial moves "
            "the value."
        )
    elif s.slope.high < 0:
        say("The slope is below 0: on this benchmark the dial moves the value the wrong way.")


def _show_coefficients(run: EvalRun) -> None:
    table = Figures(
        "coefficient",
        "mean score, nats [95 %]",
        "shift from 0 [95 %]",
        "acquiescence [95 %]",
        "P(answers)",
        "invalid",
    )
    for c in run.coefficients:
        e = run.scores.at(c)
        table.add_row(
            format_coefficient(c),
            format_estimate(e.mean_score),
            format_estimate(e.shift) if c else "",
            format_estimate(e.acquiescence) if c else "",
            f"{e.pmass:.3f}",
            str(e.invalid),
        )
    out.print(table)


def _show_disturbance(run: EvalRun) -> None:
    if not run.disturbance:
        return
    n = run.disturbance_at(run.coefficients[0]).kl_p95.clusters
    say(
        f"What it disturbs, on {n} neutral prompts (KL to the base on its own answers; NLL of the "
        f"prompts), and on control questions:"
    )
    table = Figures(
        "coefficient",
        "KL p95, nats [95 %]",
        "mean KL, nats [95 %]",
        "NLL shift, nats [95 %]",
        "control shift [95 %]",
    )
    for c in filter(None, run.coefficients):
        d = run.disturbance_at(c)
        table.add_row(
            format_coefficient(c),
            format_estimate(d.kl_p95, signed=False),
            format_estimate(d.kl_mean, signed=False),
            format_estimate(d.nll_shift),
            format_optional(run.scores.at(c).control_shift, signed=False),
        )
    out.print(table)


def _show_controls(kinds: Sequence[ControlKind]) -> None:
    say("Which controls it moves, by how much, and how far towards Yes:")
    table = Figures(
        "controls", "coefficient", "size, nats [95 %]", "towards Yes [95 %]", "n", labels=2
    )
    for kind in kinds:
        for c in ("-1", "1"):
            table.add_row(
                kind.name,
                format_coefficient(float(c)),
                format_estimate(kind.sizes[c], signed=False),
                format_estimate(kind.means[c]),
                str(kind.rows),
            )
    out.print(table)


def _show_summary(s: Scores) -> None:
    f1_valid_only = Estimate.point(s.steering_f1_valid_only)
    rows = {
        "slope of the mean score, nats per unit [95 %]": format_estimate(s.slope),
        "selectivity: slope per nat of control shift [95 %]": format_optional(s.selectivity),
        "monotonicity (Spearman) [95 %]": format_estimate(s.monotonicity),
        "Steering F1, 0 to 100 [95 %]": format_f1(s.steering_f1),
        f"... by chance: mean and 95 % of {s.chance.draws} label shuffles": _chance(s),
        "... on rows valid throughout": format_f1(f1_valid_only),
        "Surgical Informedness [95 %]": format_estimate(s.informedness, digits=1),
        "target rows fixed / broken at +1": f"{format_share(s.parts.correct_rate)} / "
        f"{format_share(s.parts.wrong_rate)}" + _counts(s),
        "target rows that move against the dial [95 %]": format_optional(
            s.against_share, signed=False
        ),
        "KL to 0 on the task's answers at +1 / -1, nats": _task_kl(s),
        "control rows flipped at +1 or -1": format_share(s.parts.arbitrary_rate),
        "P(answers) ratio, squared": f"{s.parts.pmass_ratio:.3f}",
    }
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, text in rows.items():
        table.add_row(name, text)
    out.print(table)


def _counts(s: Scores) -> str:
    return "" if s.fixed is None else f" ({s.fixed}, {s.broken} of {s.n_target})"


def _task_kl(s: Scores) -> str:
    found = [s.at(c).task_kl for c in (1.0, -1.0)]
    return " / ".join(format_optional(x, signed=False) for x in found)


def _chance(s: Scores) -> str:
    if math.isnan(s.chance.p):
        return "undefined"
    return f"{s.chance.mean:.1f}, {s.chance.p95:.1f} (p = {s.chance.p:.3f})"


def _show_values(found: ValueShifts) -> None:
    """Values that the dial moves, and classes of values."""
    for what, shifts in (
        ("values", found.values),
        ("classes of value frameworks", found.frameworks),
    ):
        if shifts:
            moved = [s for s in shifts if s.moved]
            effects = ", ".join(_effect(s) for s in moved[:SHOWN_VALUES])
            say(
                f"{len(moved)} of {len(shifts)} {what} with {found.minimum} rows or more are moved "
                f"(false-discovery rate {found.level:.0%})"
                + (f", nats per unit: {effects}" if effects else "")
                + (", ..." if len(moved) > SHOWN_VALUES else "")
            )


def _effect(s: ValueShift) -> str:
    return f"{s.name} {s.effect:+.2f} [{s.low:+.2f}, {s.high:+.2f}]"


def _show_sentiment(run: SentimentRun) -> None:
    s = run.scores
    say(
        f"{run.title}: n = {s.n_prompts} prompts, greedy answers, VADER compound score from -1 to 1"
    )
    table = Figures(
        "coefficient", "sentiment [95 %]", "distinct words, share [95 %]", "words [95 %]"
    )
    for c in run.coefficients:
        e = s.at(c)
        table.add_row(
            format_coefficient(c),
            format_estimate(e.sentiment),
            format_estimate(e.distinct, signed=False),
            format_estimate(e.words, digits=1, signed=False),
        )
    out.print(table)
    say(f"slope per unit of coefficient [95 %]: {format_estimate(s.slope)}")
    if s.slope.holds(0.0):
        say(
            "The interval of the slope holds 0: these texts do not show that the dial moves "
            "sentiment."
        )
