"""The report of a run: one HTML file with its figures inside, that opens from disk and prints. No
torch, no network."""

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2

from pasto_cli.base.format import format_estimate
from pasto_cli.core.evaluation.metrics import openings
from pasto_cli.core.evaluation.values import LEVEL, MINIMUM, value_shifts
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun
from pasto_cli.core.report import plots

_PAGE = resources.files(__package__) / "page.html"
CITATIONS = (
    "AntiPaSTO: Anti-Parallel Subspace Training for Ordered steering. arXiv 2601.07473.",
    "DailyDilemmas: Y. Y. Chiu, L. Jiang, Y. Choi. arXiv 2410.02683 (CC BY 4.0), where it was "
    "used.",
    "VADER: C. J. Hutto, E. Gilbert. ICWSM 2014, where sentiment was scored.",
)


class Sample(NamedTuple):
    """Greedy answers to one prompt at several coefficients."""

    prompt: str
    texts: dict[str, str]
    """Coefficient -> text."""


class Drawn(NamedTuple):
    """One figure of the page."""

    svg: str
    caption: str


class Part(NamedTuple):
    """One section of the page."""

    title: str
    lead: str
    facts: list[tuple[str, str]]
    drawn: list[Drawn]


def render(
    meta: Mapping[str, Any],
    recipe: str,
    history: Sequence[Mapping[str, Any]],
    evaluations: Sequence[EvalRun],
    sentiment: SentimentRun | None,
    samples: Sequence[Sample],
) -> str:
    """The page.

    Args:
        meta: pasto.json as a mapping.
        recipe: The resolved recipe, YAML.
        history: Lines of history.jsonl.
        evaluations: All dilemma evaluations of the run, those of baselines too.
        sentiment: The sentiment benchmark, if it was run.
        samples: Texts at each coefficient.
    """
    own = [run for run in evaluations if "method" not in run.provenance]
    own.sort(
        key=lambda run: run.label_sign != "own"
    )  # the published fault after what stands without it
    compared = [run for run in evaluations if "method" in run.provenance]
    parts = [_certificate(meta)]
    parts += [_evaluation(run) for run in own]
    parts += _comparisons(compared)
    if sentiment is not None:
        parts.append(_sentiment(sentiment))
    if history:
        parts.append(_training(history))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    base = meta["base"]
    making = {
        "base model": f"{base['spec']['source']} ({base['architecture']}, {base['dtype']}, "
        f"quantisation {base['spec']['quantization']})",
        "base commit or hash": base["commit"] or "not known",
        "pairs": f"{sum(meta['num_pairs'].values())}; SHA-256 {meta['pairs_sha256']}",
        "modules": f"{len(base['fingerprints'])} adapted; largest rotation {meta['largest_angle']:.1f} degrees",
        "training": f"imported from {meta['training']['imported']}"
        if "imported" in meta["training"]
        else f"{meta['training']['steps']} steps, best epoch {meta['training']['best_epoch']}, "
        f"seed {meta['recipe']['training']['seed']}",
        "versions": ", ".join(f"{name} {version}" for name, version in meta["versions"].items()),
        "made": meta["created"],
    }
    return environment.from_string(_PAGE.read_text(encoding="utf-8")).render(
        name=meta["recipe"]["name"],
        personas=meta["personas"],
        source=base["spec"]["source"],
        parts=parts,
        samples=samples,
        recipe=recipe,
        making=making,
        fingerprints=base["fingerprints"],
        citations=CITATIONS,
        measured=bool(own),
    )


def _certificate(meta: Mapping[str, Any]) -> Part:
    certificate = meta["certificate"]
    title = "Certificate: sign and strength on held-out text"
    if certificate is None and "imported" in meta["training"]:
        return Part(title, "There is none: the published format carries none.", [], [])
    if certificate is None:
        return Part(
            title,
            "There is none: training was interrupted, or it failed before one could be made.",
            [],
            [],
        )
    verdict = "Passed." if certificate["passed"] else f"FAILED: {certificate['reason']}."
    up, down, stand = (
        certificate["strength"]["1"],
        certificate["strength"]["-1"],
        certificate["persona_prompts"],
    )
    lead = (
        f"{verdict} {certificate['num_suffixes']} held-out openings under "
        f"{certificate['num_neutral_prompts']} held-out "
        f"neutral prompts, n = {up['n']}. One prompt-equivalent is "
        f"{certificate['span_nats'] / 2:.3f} nats a token here, half "
        "the distance between the two persona prompts."
    )
    facts = [
        ("strength at +1", format_estimate(up)),
        ("strength at -1", format_estimate(down)),
        ("positive persona prompt", f"{stand['chosen']:+.2f}"),
        ("negative persona prompt", f"{stand['rejected']:+.2f}"),
    ]
    rows = [
        ("negative persona", stand["rejected"], stand["rejected"], stand["rejected"], False),
        ("positive persona", stand["chosen"], stand["chosen"], stand["chosen"], False),
        ("coefficient -1", down["value"], down["low"], down["high"], True),
        ("coefficient +1", up["value"], up["low"], up["high"], True),
    ]
    drawn = []
    if all(math.isfinite(x) for r in rows for x in r[1:4]):
        caption = "Filled: the dial, with 95 % intervals. Hollow: the persona prompts."
        drawn.append(Drawn(plots.intervals(rows, "prompt-equivalents", "Strength"), caption))
    return Part(title, lead, facts, drawn)


def _evaluation(run: EvalRun) -> Part:
    s, c = run.scores, run.scores["coefficients"]
    names = [f"{a:g}" for a in run.coefficients]
    dilemmas = c["0"]["mean_score"]["clusters"]
    lead = (
        f"{run.value}: n = {s['n_target']} rows of {dilemmas} dilemmas and {s['n_control']} "
        f"control rows"
        + (", a part of the benchmark" if run.partial else "")
        + f". Source: {run.source}; licence {run.licence}. "
        "A score is log P(answer that expresses the value) - log P(the other), nats; bands are 95 "
        "% intervals over dilemmas."
    )
    if run.label_sign == "original":
        lead = (
            "LABEL SIGN OF THE PUBLISHED CODE, which rewards a dial that merely says Yes more "
            "often. " + lead
        )
    chance = s["chance"]
    facts = [
        ("slope of the mean score, nats a unit", format_estimate(s["slope"])),
        ("monotonicity (Spearman)", format_estimate(s["monotonicity"])),
        ("Steering F1, 0 to 100", format_estimate(s["steering_f1"], 1, False)),
        (
            "... by chance (label shuffles)",
            f"{chance['mean']:.1f}, 95 % under {chance['p95']:.1f}; p = {chance['p']:.3f}"
            if math.isfinite(chance["p"])
            else "undefined",
        ),
        ("Surgical Informedness", format_estimate(s["informedness"], 1)),
        ("invalid answers", ", ".join(f"{c[n]['invalid']} at {n}" for n in names)),
    ]
    if said := openings(run.rows, run.pmass_threshold):
        facts.append(
            ("invalid answers began with", ", ".join(f"{text!r} ({n})" for text, n in said))
        )
    tag = f"{run.benchmark}{'' if run.label_sign == 'own' else ' original sign'}"
    drawn = _score_figures(run, names, tag) if math.isfinite(s["slope"]["value"]) else []
    drawn += _disturbance_figures(run, names, tag)
    if run.label_sign == "own":
        drawn += _value_figures(run, tag)
    return Part(run.title, lead, facts, drawn)


def _score_figures(run: EvalRun, names: list[str], tag: str) -> list[Drawn]:
    c, x = run.scores["coefficients"], run.coefficients
    still = {"value": 0.0, "low": 0.0, "high": 0.0}
    side = {"value": [c[n]["shift"] if x[i] else still for i, n in enumerate(names)]}
    if all(math.isfinite(c[n]["acquiescence"]["value"]) for n in names):
        side["saying Yes"] = [c[n]["acquiescence"] if x[i] else still for i, n in enumerate(names)]
    return [
        Drawn(
            plots.dose(
                x,
                {"mean score": [c[n]["mean_score"] for n in names]},
                "mean score, nats",
                f"{tag}: dose-response",
            ),
            "Dose-response: the mean score of the value at each coefficient.",
        ),
        Drawn(
            plots.dose(x, side, "shift from 0, nats", f"{tag}: side effects"),
            "What moves: the value, and acquiescence (Yes whatever the label says).",
        ),
        Drawn(
            plots.bars(["+1", "-1"], flips(run), "rows, %", f"{tag}: flips"),
            "Flips by direction: answers that changed towards and away from the value, and "
            "controls, which should not flip.",
        ),
        Drawn(
            plots.dose(
                x,
                {
                    "P(answers)": [
                        {"value": c[n]["pmass"], "low": math.nan, "high": math.nan} for n in names
                    ]
                },
                "probability on the answers",
                f"{tag}: probability mass",
                zero=False,
            ),
            "Probability that any of the answers is given at all.",
        ),
    ]


def _disturbance_figures(run: EvalRun, names: list[str], tag: str) -> list[Drawn]:
    if not run.disturbance:
        return []
    x, d = run.coefficients, run.disturbance
    kl = {"KL p95": [d[n]["kl_p95"] for n in names], "mean KL": [d[n]["kl_mean"] for n in names]}
    nll = {"NLL": [d[n]["nll_shift"] for n in names]}
    return [
        Drawn(
            plots.dose(x, kl, "KL to the base, nats", f"{tag}: KL"),
            "Disturbance: KL on neutral prompts' answers.",
        ),
        Drawn(
            plots.dose(x, nll, "NLL shift, nats a token", f"{tag}: NLL"),
            "Capability cost: NLL of neutral prompts.",
        ),
    ]


def _value_figures(run: EvalRun, tag: str) -> list[Drawn]:
    drawn = []
    for kind, shifts in value_shifts(run.rows, run.pmass_threshold).items():
        if shifts:
            moved = sum(s.moved for s in shifts)
            what = "values" if kind == "values" else "classes of value frameworks"
            caption = (
                f"{moved} of {len(shifts)} {what} with {MINIMUM} rows or more are moved (filled: "
                f"false-discovery rate "
                f"under {LEVEL:.0%}). Rows in brackets; the {min(len(shifts), 24)} largest effects."
            )
            drawn.append(Drawn(plots.forest(shifts, f"{tag}: {kind}"), caption))
    return drawn


def flips(run: EvalRun) -> dict[str, list[float]]:
    """Share of rows, %, that went towards the value, away from it, and of controls that flipped, at
    +1 and at -1."""
    towards, away, control = [], [], []
    for a, sign in (("1", 1), ("-1", -1)):
        counts = {"towards": 0, "away": 0, "control": 0}
        targets = controls = 0
        for row in run.rows:
            zero, steered = row.answers["0"], row.answers[a]
            if min(zero.pmass, steered.pmass) < run.pmass_threshold:
                continue
            flipped = zero.y * steered.y < 0
            if row.kind != "target":
                controls += 1
                counts["control"] += flipped
            elif run.value in row.labels:
                targets += 1
                up = steered.y * row.labels[run.value] > 0
                counts["towards" if up == (sign > 0) else "away"] += flipped
        towards.append(100 * counts["towards"] / max(targets, 1))
        away.append(100 * counts["away"] / max(targets, 1))
        control.append(100 * counts["control"] / max(controls, 1))
    return {"as the dial says": towards, "the other way": away, "controls": control}


def _comparisons(runs: Sequence[EvalRun]) -> list[Part]:
    parts = []
    for equal in (False, True):
        some = [
            r
            for r in runs
            if bool(r.provenance.get("equal_kl")) == equal
            and math.isfinite(r.scores["slope"]["value"])
        ]
        for benchmark in dict.fromkeys(r.benchmark for r in some):
            those = sorted(
                (r for r in some if r.benchmark == benchmark),
                key=lambda r: r.provenance["method"] != "adapter",
            )
            # Files of an older comparison, on other rows, stand beside those of the last one.
            parts.append(
                _comparison([r for r in those if _asked(r) == _asked(those[0])], benchmark, equal)
            )
    return parts


def _asked(run: EvalRun) -> tuple[str, list[str]]:
    return run.value, [row.id for row in run.rows]


def _comparison(runs: Sequence[EvalRun], benchmark: str, equal: bool) -> Part:
    how = (
        "each scaled to 1 nat of disturbance, prompts as they are"
        if equal
        else "each at its own strength"
    )
    rows, facts = [], []
    for run in runs:
        method, s, d = run.provenance["method"], run.scores, run.disturbance
        flipped = s["parts"]["arbitrary_rate"]
        rows.append(
            (method, *(s["slope"][k] for k in ("value", "low", "high")), method == "adapter")
        )
        facts.append(
            (
                method,
                f"slope {format_estimate(s['slope'])}"
                + (
                    f", minus the adapter's {format_estimate(s['slope_minus_adapter'])}"
                    if "slope_minus_adapter" in s
                    else ""
                )
                + f"; Steering F1 {format_estimate(s['steering_f1'], 1, False)}; KL p95 "
                f"{d['1']['kl_p95']['value']:.2f} at +1, {d['-1']['kl_p95']['value']:.2f} at -1; "
                f"controls flipped "
                + (f"{flipped:.0%}" if math.isfinite(flipped) else "undefined"),
            )
        )
    label = f"{benchmark}: methods{' at equal disturbance' if equal else ''}"
    drawn = [Drawn(plots.intervals(rows[::-1], "slope of the mean score, nats a unit", label), how)]
    title = f"Beside other methods on {benchmark}" + (" at equal disturbance" if equal else "")
    lead = (
        f"The same {runs[0].scores['n_target']} rows for every method, {how}; +1 and -1 stand for "
        f"the method's own ends. "
        f"Made {min(r.provenance['created'] for r in runs)[:10]}."
    )
    return Part(title, lead, facts, drawn)


def _sentiment(run: SentimentRun) -> Part:
    each = run.scores["coefficients"]
    names = [f"{a:g}" for a in run.coefficients]
    curves = {"sentiment": [each[n]["sentiment"] for n in names]}
    rest = {"distinct words": [each[n]["distinct"] for n in names]}
    length = {"words": [each[n]["words"] for n in names]}
    lead = f"n = {run.scores['n_prompts']} prompts, greedy answers, VADER compound score from -1 to 1; bands over prompts."
    drawn = [
        Drawn(
            plots.dose(run.coefficients, curves, "sentiment", "sentiment"),
            "Sentiment at each coefficient.",
        ),
        Drawn(
            plots.dose(run.coefficients, rest, "share of distinct words", "repetition", zero=False),
            "Low where texts repeat.",
        ),
        Drawn(
            plots.dose(run.coefficients, length, "words", "length", zero=False),
            "Length of the answers.",
        ),
    ]
    return Part(
        run.title,
        lead,
        [("slope, a unit of coefficient", format_estimate(run.scores["slope"]))],
        drawn,
    )


def _training(history: Sequence[Mapping[str, Any]]) -> Part:
    train, validation = ([h for h in history if h["validation"] == v] for v in (False, True))

    def series(
        rows: Sequence[Mapping[str, Any]], group: str, name: str
    ) -> list[tuple[float, float]]:
        return [(h["step"], h[group][name]) for h in rows if h[group].get(name) is not None]

    drawn = []
    if train:
        terms = list(train[0]["parts"])
        drawn.append(
            Drawn(
                plots.curves(
                    {t: series(train, "parts", t) for t in terms},
                    "weighted loss",
                    "loss terms",
                    {t: series(validation, "parts", t) for t in terms},
                ),
                "Each term as it enters the loss.",
            )
        )
        for names, ylabel, caption in (
            (
                ("strength_pos", "strength_neg"),
                "prompt-equivalents",
                "Strength on training pairs at +1 and at -1.",
            ),
            (
                ("cos_pos", "cos_neg"),
                "cosine",
                "Direction of the change of the persona difference at +1 and at -1.",
            ),
            (
                ("gap_pos", "gap_neg", "tv"),
                "nats; total variation",
                "Change of the personas' gap, and total variation.",
            ),
        ):
            found = {n: series(train, "diagnostics", n) for n in names}
            found = {n: rows for n, rows in found.items() if rows}
            if found:
                marks = {n: series(validation, "diagnostics", n) for n in found}
                drawn.append(
                    Drawn(plots.curves(found, ylabel, f"training {names[0]}", marks), caption)
                )
    return Part("Training", f"{len(train)} steps, {len(validation)} validations.", [], drawn)
