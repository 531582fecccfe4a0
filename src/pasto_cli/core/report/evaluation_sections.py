"""Sections of the report that come from dilemma benchmarks: the dial's own, and comparisons."""

import math
from collections.abc import Sequence

from pasto_cli.base.format import format_estimate, format_optional, format_share
from pasto_cli.base.statistics import Estimate
from pasto_cli.core.records.evaluation import EvalDetails, EvalRun, Evaluated, Flips
from pasto_cli.core.records.scores import CoefficientScores, Scores, key
from pasto_cli.core.report import plots
from pasto_cli.core.report.sections import Drawing, Section

SHOWN_VALUES = 24
"""Values in one forest plot."""
ZERO = Estimate(value=0.0, low=0.0, high=0.0, n=0)
"""What nothing moved by at coefficient 0, where it is compared with itself."""


def evaluation_section(evaluated: Evaluated) -> Section:
    """One benchmark, measured with the dial alone."""
    run, details = evaluated
    tag = run.benchmark if run.label_sign == "own" else f"{run.benchmark} original sign"
    drawings: list[Drawing] = []
    if math.isfinite(run.scores.slope.value):
        drawings += _score_drawings(run, details, tag)
    drawings += _disturbance_drawings(run, tag)
    drawings += _value_drawings(details, tag)
    return Section(run.title, _lead(run), _facts(run, details), drawings)


def _lead(run: EvalRun) -> str:
    s = run.scores
    warning = (
        "LABEL SIGN OF THE PUBLISHED CODE, which rewards a dial that merely says Yes more often. "
    )
    return (
        (warning if run.label_sign == "original" else "")
        + f"{run.value}: n = {s.n_target} rows of {s.num_dilemmas} dilemmas and {s.n_control} "
        + ("control rows, a part of the benchmark. " if run.partial else "control rows. ")
        + f"Source: {run.source}; licence {run.licence}. "
        "A score is log P(answer that expresses the value) - log P(the other), nats; "
        "bands are 95 % intervals over dilemmas."
    )


def _facts(run: EvalRun, details: EvalDetails) -> list[tuple[str, str]]:
    s = run.scores
    invalid = ", ".join(f"{s.at(a).invalid} at {key(a)}" for a in run.coefficients)
    facts = [
        ("slope of the mean score, nats per unit", format_estimate(s.slope)),
        ("selectivity, slope per nat of control shift", format_optional(s.selectivity)),
        ("monotonicity (Spearman)", format_estimate(s.monotonicity)),
        ("Steering F1, 0 to 100", format_estimate(s.steering_f1, digits=1, signed=False)),
        ("... by chance (label shuffles)", _chance(s)),
        ("Surgical Informedness", format_estimate(s.informedness, digits=1)),
        ("target rows fixed, broken at +1", f"{s.fixed}, {s.broken} of {s.n_target}"),
        ("target rows against the dial", format_optional(s.against_share, signed=False)),
        ("control shift at +1", format_optional(s.at(1.0).control_shift, signed=False)),
        ("control shift at -1", format_optional(s.at(-1.0).control_shift, signed=False)),
        ("invalid answers", invalid),
    ]
    if s.selectivity is None:  # a file of before these were measured
        facts = [fact for fact in facts if fact[1] and not fact[1].startswith("None")]
    if len(details.controls) > 1:
        facts += [
            (
                f"control shift of {kind.name}, +1 and -1",
                " and ".join(format_estimate(kind.sizes[c], signed=False) for c in ("1", "-1")),
            )
            for kind in details.controls
        ]
    if details.invalid_top_tokens:
        tokens = ", ".join(f"{text!r} ({n})" for text, n in details.invalid_top_tokens)
        facts.append(("invalid answers began with", tokens))
    return facts


def _chance(s: Scores) -> str:
    if not math.isfinite(s.chance.p):
        return "undefined"
    return f"{s.chance.mean:.1f}, 95 % under {s.chance.p95:.1f}; p = {s.chance.p:.3f}"


def _score_drawings(run: EvalRun, details: EvalDetails, tag: str) -> list[Drawing]:
    x = run.coefficients
    each = [run.scores.at(a) for a in x]
    dose = plots.dose(
        x,
        {"mean score": [e.mean_score for e in each]},
        "mean score, nats",
        f"{tag}: dose-response",
    )
    effects = plots.dose(x, _side_effects(x, each), "shift from 0, nats", f"{tag}: side effects")
    flips = plots.bars(
        ["+1", "-1"],
        _flip_bars(details.flips_up, details.flips_down),
        "rows, %",
        f"{tag}: flips",
    )
    mass = plots.dose(
        x,
        {"P(answers)": [Estimate.point(e.pmass) for e in each]},
        "probability on the answers",
        f"{tag}: probability mass",
        zero=False,
    )
    return [
        Drawing(dose, "Dose-response: the mean score of the value at each coefficient."),
        Drawing(effects, "What moves: the value, and acquiescence (Yes whatever the label says)."),
        Drawing(
            flips,
            "Flips by direction: answers that changed towards and away from the value, and "
            "controls, which should not flip.",
        ),
        Drawing(mass, "Probability that any of the answers is given at all."),
    ]


def _side_effects(
    x: Sequence[float], each: Sequence[CoefficientScores]
) -> dict[str, list[Estimate]]:
    def from_zero(estimates: Sequence[Estimate]) -> list[Estimate]:
        return [e if a else ZERO for a, e in zip(x, estimates, strict=True)]

    series = {"value": from_zero([e.shift for e in each])}
    # Without Yes/No questions nobody can just say Yes.
    if all(math.isfinite(e.acquiescence.value) for e in each):
        series["saying Yes"] = from_zero([e.acquiescence for e in each])
    return series


def _flip_bars(up: Flips, down: Flips) -> dict[str, list[float]]:
    return {
        "as the dial says": [up.towards, down.towards],
        "the other way": [up.away, down.away],
        "controls": [up.controls, down.controls],
    }


def _disturbance_drawings(run: EvalRun, tag: str) -> list[Drawing]:
    if not run.disturbance:
        return []
    x = run.coefficients
    each = [run.disturbance_at(a) for a in x]
    kl = plots.dose(
        x,
        {"KL p95": [d.kl_p95 for d in each], "mean KL": [d.kl_mean for d in each]},
        "KL to the base, nats",
        f"{tag}: KL",
    )
    nll = plots.dose(
        x, {"NLL": [d.nll_shift for d in each]}, "NLL shift, nats per token", f"{tag}: NLL"
    )
    return [
        Drawing(kl, "Disturbance: KL on neutral prompts' answers."),
        Drawing(nll, "Capability cost: NLL of neutral prompts."),
    ]


def _value_drawings(details: EvalDetails, tag: str) -> list[Drawing]:
    found = details.shifts
    if found is None:
        return []
    drawings: list[Drawing] = []
    for kind, what, shifts in (
        ("values", "values", found.values),
        ("frameworks", "classes of value frameworks", found.frameworks),
    ):
        if shifts:
            moved, shown = sum(s.moved for s in shifts), shifts[:SHOWN_VALUES]
            caption = (
                f"{moved} of {len(shifts)} {what} with {found.minimum} rows or more are moved "
                f"(filled: false-discovery rate under {found.level:.0%}). Rows in brackets; the "
                f"{len(shown)} largest effects."
            )
            drawings.append(Drawing(plots.forest(shown, f"{tag}: {kind}"), caption))
    return drawings


def comparison_sections(runs: Sequence[EvalRun]) -> list[Section]:
    """The dial beside its baselines: each at its own strength, then all at equal disturbance."""
    sections: list[Section] = []
    for equal in (False, True):
        some = [r for r in runs if r.equal_kl == equal and math.isfinite(r.scores.slope.value)]
        for benchmark in dict.fromkeys(r.benchmark for r in some):
            of_one = [r for r in some if r.benchmark == benchmark]
            of_one.sort(key=lambda r: r.method != "adapter")
            # Files of an older comparison, on other rows, stand beside those of the last one.
            comparable = [r for r in of_one if _asked(r) == _asked(of_one[0])]
            sections.append(_comparison(comparable, benchmark, equal))
    return sections


def _asked(run: EvalRun) -> tuple[str, list[str]]:
    return run.value, [row.id for row in run.rows]


def _comparison(runs: Sequence[EvalRun], benchmark: str, equal: bool) -> Section:
    how = (
        "each scaled to 1 nat of disturbance, prompts as they are"
        if equal
        else "each at its own strength"
    )
    ending = " at equal disturbance" if equal else ""
    marks: list[plots.Mark] = []
    for run in reversed(runs):  # the first one stands on top
        slope, method = run.scores.slope, str(run.method)
        marks.append(
            plots.Mark(method, slope.value, slope.low, slope.high, filled=method == "adapter")
        )
    svg = plots.intervals(
        marks, "slope of the mean score, nats per unit", f"{benchmark}: methods{ending}"
    )
    lead = (
        f"The same {runs[0].scores.n_target} rows for every method, {how}; +1 and -1 stand for the "
        f"method's own ends. Made {min(run.created for run in runs)[:10]}."
    )
    facts = [(str(run.method), _comparison_fact(run)) for run in runs]
    return Section(f"Beside other methods on {benchmark}{ending}", lead, facts, [Drawing(svg, how)])


def _comparison_fact(run: EvalRun) -> str:
    s, up, down = run.scores, run.disturbance_at(1.0), run.disturbance_at(-1.0)
    difference = (
        ""
        if s.slope_minus_adapter is None
        else f", minus the adapter's {format_estimate(s.slope_minus_adapter)}"
    )
    flipped = s.parts.arbitrary_rate
    return (
        f"slope {format_estimate(s.slope)}{difference}; "
        f"selectivity {format_optional(s.selectivity) or 'not measured'}; "
        f"Steering F1 {format_estimate(s.steering_f1, digits=1, signed=False)}; "
        f"KL p95 {up.kl_p95.value:.2f} at +1, {down.kl_p95.value:.2f} at -1; "
        f"controls flipped {format_share(flipped, digits=0)}"
    )
