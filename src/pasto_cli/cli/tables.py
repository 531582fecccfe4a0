"""What `pasto eval` prints: scores, comparisons, seeds, simulated steerers. Data to stdout, as
tables or as JSON."""

import json as library
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pasto_cli.base.format import format_estimate
from pasto_cli.base.statistics import Spread, spread
from pasto_cli.cli.console import out, print_json
from pasto_cli.core.evaluation.benchmarks import Benchmark
from pasto_cli.core.evaluation.disturbance import LARGEST_COEFFICIENT
from pasto_cli.core.evaluation.metrics import openings
from pasto_cli.core.evaluation.oracles import OracleScore
from pasto_cli.core.evaluation.seeds import across_seeds
from pasto_cli.core.evaluation.values import LEVEL, MINIMUM, value_shifts
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun, dump, without_nan
from pasto_cli.workflows.compare import Method

SHOWN_VALUES = 8


def show_runs(found: Sequence[tuple[EvalRun | SentimentRun, Path | None]], json: bool) -> None:
    """Scores of one run or of several, and what several have in common."""
    runs = [run for run, _ in found]
    dilemmas = [run for run in runs if isinstance(run, EvalRun)]
    across: dict[str, Spread] = {}
    if len(dilemmas) > 1 and len(dilemmas) == len(runs):
        across = across_seeds(dilemmas)
    elif len(runs) > 1 and not dilemmas:
        across = {"slope of sentiment": spread([run.scores["slope"]["value"] for run in runs])}
    if json:
        records = [
            library.loads(dump(run) if isinstance(run, EvalRun) else run.model_dump_json())
            for run in runs
        ]
        whole = {"runs": records, "across": {name: s._asdict() for name, s in across.items()}}
        print_json(without_nan(whole) if len(runs) > 1 else records[0])
        return
    for run, path in found:
        if len(found) > 1:
            _say(
                f"\n{run.provenance['adapter']}, training seed {run.provenance['training_seed']}",
                style="bold",
            )
        _show_sentiment(run) if isinstance(run, SentimentRun) else _show(run)
        if path:
            _say(f"every row: {path}")
    if across:
        show_spread(across, len(runs))


def show_spread(across: dict[str, Spread], runs: int) -> None:
    """Mean, spread, interval and agreement over training runs."""
    _say(
        f"\nOver {runs} training runs (the interval is over runs, Student's t with {runs - 1} "
        f"degrees of freedom)",
        style="bold",
    )
    table = _table("", "mean [95 %]", "SD", "sign agrees", "each")
    for name, s in across.items():
        each = ", ".join(f"{v:+.2f}" for v in s.values)
        mean = format_estimate({"value": s.mean, "low": s.low, "high": s.high})
        table.add_row(
            name,
            mean,
            *((f"{s.sd:.2f}", f"{s.agree} of {s.n}", each) if s.mean == s.mean else ("", "", "")),
        )
    out.print(table)


def _say(text: str, style: str | None = None) -> None:
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _signed(coefficient: float) -> str:
    return f"{coefficient:+g}" if coefficient else "0"


def _show(run: EvalRun) -> None:
    s = run.scores
    _warn_of_sign(run.label_sign)
    dilemmas = s["coefficients"]["0"]["mean_score"]["clusters"]
    _say(
        f"{run.title}: {run.value}, n = {s['n_target']} rows of {dilemmas} dilemmas, "
        f"{s['n_control']} control rows" + (" (part of the benchmark)" if run.partial else "")
    )
    table = _table(
        "coefficient",
        "mean score, nats [95 %]",
        "shift from 0 [95 %]",
        "acquiescence [95 %]",
        "P(answers)",
        "invalid",
    )
    for c in run.coefficients:
        e = s["coefficients"][f"{c:g}"]
        moved = [format_estimate(e["shift"]), format_estimate(e["acquiescence"])] if c else ["", ""]
        table.add_row(
            _signed(c),
            format_estimate(e["mean_score"]),
            *moved,
            f"{e['pmass']:.3f}",
            str(e["invalid"]),
        )
    out.print(table)
    _show_disturbance(run)
    parts, chance = s["parts"], s["chance"]
    summary = Table(show_header=False)
    summary.add_column("")
    summary.add_column("", justify="right")
    summary.add_row("slope of the mean score, nats a unit [95 %]", format_estimate(s["slope"]))
    summary.add_row("monotonicity (Spearman) [95 %]", format_estimate(s["monotonicity"]))
    summary.add_row("Steering F1, 0 to 100 [95 %]", format_estimate(s["steering_f1"], 1, False))
    summary.add_row(
        f"... by chance: mean and 95 % of {chance['draws']} label shuffles",
        f"{chance['mean']:.1f}, {chance['p95']:.1f} (p = {chance['p']:.3f})"
        if chance["p"] == chance["p"]
        else "undefined",
    )
    summary.add_row(
        "... on rows valid throughout",
        format_estimate({"value": s["steering_f1_valid_only"], "low": math.nan}, 1, False),
    )
    summary.add_row("Surgical Informedness [95 %]", format_estimate(s["informedness"], 1))
    summary.add_row(
        "target rows fixed / broken at +1",
        f"{_share(parts['correct_rate'])} / {_share(parts['wrong_rate'])}",
    )
    summary.add_row("control rows flipped at +1 or -1", _share(parts["arbitrary_rate"]))
    summary.add_row("P(answers) ratio, squared", f"{parts['pmass_ratio']:.3f}")
    out.print(summary)
    _show_values(run)
    if said := ", ".join(f"{text!r} ({n})" for text, n in openings(run.rows, run.pmass_threshold)):
        _say(f"invalid answers began with: {said}")
    if math.isnan(s["steering_f1"]["value"]):
        _say(
            f"Scores are undefined: less than {run.pmass_threshold:.0%} of the probability lies on "
            f"the answers."
        )
    elif s["slope"]["low"] <= 0 <= s["slope"]["high"]:
        _say(
            "The interval of the slope holds 0: this evaluation does not show that the dial moves "
            "the value."
        )
    elif s["slope"]["high"] < 0:
        _say("The slope is below 0: on this benchmark the dial moves the value the wrong way.")


def _show_disturbance(run: EvalRun) -> None:
    if not run.disturbance:
        return
    n = run.disturbance[f"{run.coefficients[0]:g}"]["kl_p95"]["clusters"]
    _say(
        f"What it disturbs, on {n} neutral prompts (KL to the base on its own answers; NLL of the "
        f"prompts):"
    )
    table = _table(
        "coefficient",
        "KL p95, nats [95 %]",
        "mean KL, nats [95 %]",
        "NLL shift, nats a token [95 %]",
    )
    for c in run.coefficients:
        if c:
            d = run.disturbance[f"{c:g}"]
            table.add_row(
                _signed(c),
                format_estimate(d["kl_p95"], signed=False),
                format_estimate(d["kl_mean"], signed=False),
                format_estimate(d["nll_shift"]),
            )
    out.print(table)


def _share(x: float) -> str:
    return f"{x:.1%}" if x == x else "undefined"


def _show_values(run: EvalRun) -> None:
    """Values that the dial moves, those with a false-discovery rate under the level."""
    if run.label_sign != "own":
        return
    found = value_shifts(run.rows, run.pmass_threshold)
    for kind, shifts in found.items():
        if not shifts:
            continue
        moved = [s for s in shifts if s.moved]
        first = ", ".join(
            f"{s.name} {s.effect:+.2f} [{s.low:+.2f}, {s.high:+.2f}]" for s in moved[:SHOWN_VALUES]
        )
        what = "values" if kind == "values" else "classes of value frameworks"
        _say(
            f"{len(moved)} of {len(shifts)} {what} with {MINIMUM} rows or more are moved "
            f"(false-discovery rate {LEVEL:.0%})"
            + (f", nats a unit: {first}" if first else "")
            + (", ..." if len(moved) > SHOWN_VALUES else "")
        )


def _show_sentiment(run: SentimentRun) -> None:
    s = run.scores
    _say(
        f"{run.title}: n = {s['n_prompts']} prompts, greedy answers, VADER compound score from -1 "
        f"to 1"
    )
    table = _table(
        "coefficient", "sentiment [95 %]", "distinct words, share [95 %]", "words [95 %]"
    )
    for c in run.coefficients:
        e = s["coefficients"][f"{c:g}"]
        table.add_row(
            _signed(c),
            format_estimate(e["sentiment"]),
            format_estimate(e["distinct"], signed=False),
            format_estimate(e["words"], 1, signed=False),
        )
    out.print(table)
    _say(f"slope, a unit of coefficient [95 %]: {format_estimate(s['slope'])}")
    if s["slope"]["low"] <= 0 <= s["slope"]["high"]:
        _say(
            "The interval of the slope holds 0: these texts do not show that the dial moves "
            "sentiment."
        )


def _warn_of_sign(label_sign: str) -> None:
    if label_sign == "original":
        _say(
            "LABEL SIGN ORIGINAL: the log-odds and the label of not_to_do rows are both negated, "
            "as in the published code. "
            "This rewards a dial that merely says Yes more often; use it to compare with published "
            "figures only.",
            style="bold",
        )


def show_oracles(
    benchmark: Benchmark,
    labelled: int,
    scores: Sequence[OracleScore],
    value: str,
    label_sign: str,
    json: bool,
) -> None:
    """What the metric gives to simulated steerers."""
    if json:
        records: list[dict[str, Any]] = [s._asdict() | {"f1": s.f1._asdict()} for s in scores]
        print_json(
            {
                "benchmark": benchmark.name,
                "value": value,
                "label_sign": label_sign,
                "rows": labelled,
                "oracles": records,
            }
        )
        return
    _warn_of_sign(label_sign)
    _say(f"Simulated steerers on {benchmark.title}: {value}, n = {labelled} labelled rows")
    table = _table(
        "steerer",
        "Steering F1 [95 %]",
        "mean of 20 draws",
        "informedness",
        "shift, nats",
        "acquiescence, nats",
    )
    for s in scores:
        table.add_row(
            s.name,
            format_estimate(s.f1._asdict(), 1, False),
            f"{s.mean_f1:.1f}",
            f"{s.informedness:+.1f}",
            f"{s.shift:+.2f}",
            f"{s.acquiescence:+.2f}",
        )
    out.print(table)


def show_comparison(methods: Sequence[Method], json: bool) -> None:
    """The dial and its baselines in one table."""
    if json:
        print_json(
            [
                {
                    "method": m.name,
                    "strength": m.strength,
                    "scores": m.run.scores,
                    "disturbance": m.run.disturbance,
                }
                for m in methods
            ]
        )
        return
    run = methods[0].run
    s = run.scores
    _say(
        f"{run.title}: {run.value}, n = {s['n_target']} rows of "
        f"{s['coefficients']['0']['mean_score']['clusters']} dilemmas, "
        f"{s['n_control']} control rows; brackets are 95 % intervals"
    )
    cost = _table(
        "method",
        "at",
        "coefficient",
        "KL p95, nats [95 %]",
        "NLL shift, nats [95 %]",
        "P(answers)",
        "invalid",
    )
    table = _table("method", "at", "shift of the score, nats [95 %]", "acquiescence, nats [95 %]")
    whole = _table(
        "method",
        "slope, nats [95 %]",
        "minus the adapter's",
        "Steering F1 [95 %]",
        "by chance",
        "control flips",
    )
    for m in methods:
        s = m.run.scores
        for sign, own in (("+1", m.strength[0]), ("-1", -m.strength[1])):
            e, d = s["coefficients"][f"{int(sign)}"], m.run.disturbance[f"{int(sign)}"]
            coefficient = (
                "words"
                if "prompt" in m.name
                else f"{own:+.3g}"
                if abs(own) < LARGEST_COEFFICIENT
                else "none found"
            )
            cost.add_row(
                m.name,
                sign,
                coefficient,
                format_estimate(d["kl_p95"], signed=False),
                format_estimate(d["nll_shift"]),
                f"{e['pmass']:.3f}",
                str(e["invalid"]),
            )
            table.add_row(
                m.name, sign, format_estimate(e["shift"]), format_estimate(e["acquiescence"])
            )
        chance = (
            f"{s['chance']['mean']:.1f}, p = {s['chance']['p']:.3f}"
            if s["chance"]["p"] == s["chance"]["p"]
            else ""
        )
        whole.add_row(
            m.name,
            format_estimate(s["slope"]),
            format_estimate(s["slope_minus_adapter"]) if "slope_minus_adapter" in s else "",
            format_estimate(s["steering_f1"], 1, False),
            chance,
            _share(s["parts"]["arbitrary_rate"]),
        )
    for each in (cost, table, whole):
        out.print(each)
