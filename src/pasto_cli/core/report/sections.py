"""Sections of the report from the certificate, the sentiment benchmark and the history."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.base.format import format_estimate
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import SentimentRun
from pasto_cli.core.records.screen import Screen
from pasto_cli.core.records.training import ImportRecord, Step
from pasto_cli.core.report import plots
from pasto_cli.core.report.card import anchor_lines, ends_line

DIAGNOSTICS = (
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
)
"""Diagnostics of training that share a plot, its y axis and its caption."""


SCREENED = 2
"""Questions whose answers are shown for each template and persona."""


class Drawing(NamedTuple):
    """One plot of the page."""

    svg: str
    caption: str


class Section(NamedTuple):
    """One section of the page."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    drawings: Sequence[Drawing] = ()


def certificate_section(meta: Meta) -> Section:
    """What the dial was shown to do without labels."""
    title = "Certificate: sign and strength on held-out text"
    certificate = meta.certificate
    if certificate is None:
        why = (
            "the published format carries none"
            if isinstance(meta.training, ImportRecord)
            else "training was interrupted, or it failed before one could be made"
        )
        return Section(title, f"There is none: {why}.")
    verdict = "Passed." if certificate.passed else f"FAILED: {certificate.reason}."
    up, down = certificate.strength["1"], certificate.strength["-1"]
    chosen, rejected = (certificate.persona_prompts[side] for side in ("chosen", "rejected"))
    lead = (
        f"{verdict} {certificate.num_suffixes} held-out openings under "
        f"{certificate.num_neutral_prompts} held-out neutral prompts, n = {up.n}. "
        f"One prompt-equivalent is {certificate.span_nats / 2:.3f} nats per token here, "
        "half the distance between the two persona prompts."
    )
    if meta.calibration is not None:
        lead += f" {ends_line(meta.calibration)}"
    facts = [
        ("strength at +1", format_estimate(up)),
        ("strength at -1", format_estimate(down)),
        ("positive persona prompt", f"{chosen:+.2f}"),
        ("negative persona prompt", f"{rejected:+.2f}"),
    ]
    facts += anchor_lines(certificate).items()
    marks = [
        plots.Mark("negative persona", rejected, rejected, rejected, filled=False),
        plots.Mark("positive persona", chosen, chosen, chosen, filled=False),
        plots.Mark("coefficient -1", down.value, down.low, down.high, filled=True),
        plots.Mark("coefficient +1", up.value, up.low, up.high, filled=True),
    ]
    drawings: list[Drawing] = []
    if all(math.isfinite(x) for mark in marks for x in (mark.value, mark.low, mark.high)):
        caption = "Filled: the dial, with 95 % intervals. Hollow: the persona prompts."
        svg = plots.intervals(marks, "prompt-equivalents", "Strength")
        drawings.append(Drawing(svg, caption))
    return Section(title, lead, facts, drawings)


def screen_section(screen: Screen) -> Section:
    """What the base model says under each persona, and which templates were kept."""
    facts: list[tuple[str, str]] = []
    for t in screen.templates:
        verdict = "kept" if t.kept else f"dropped: {'; '.join(t.problems)}"
        facts.append((t.template, f"{verdict}; separation {t.separation:.2f} nats per token"))
        for side, cell in (("+1", t.chosen), ("-1", t.rejected)):
            said = " | ".join(f"{a.prompt} > {a.text}" for a in cell.answers[:SCREENED])
            facts.append((f"... {side}", said))
    lead = (
        f"Before training, {len(screen.kept)} of {len(screen.templates)} templates made the model "
        f"answer {len(screen.prompts)} everyday questions under both personas. A dial learns what "
        f"the personas change: where they make the model refuse, it learns to refuse."
    )
    return Section("What the model says under each persona", lead, facts)


def sentiment_section(run: SentimentRun) -> Section:
    """Sentiment, repetition and length of greedy answers."""
    x = run.coefficients
    each = [run.scores.at(a) for a in x]
    lead = (
        f"n = {run.scores.n_prompts} prompts, greedy answers, VADER compound score from -1 to 1; "
        "bands over prompts."
    )
    sentiment = plots.dose(x, {"sentiment": [e.sentiment for e in each]}, "sentiment", "sentiment")
    distinct = plots.dose(
        x,
        {"distinct words": [e.distinct for e in each]},
        "share of distinct words",
        "repetition",
        zero=False,
    )
    words = plots.dose(x, {"words": [e.words for e in each]}, "words", "length", zero=False)
    drawings = [
        Drawing(sentiment, "Sentiment at each coefficient."),
        Drawing(distinct, "Low where texts repeat."),
        Drawing(words, "Length of the answers."),
    ]
    facts = [("slope per unit of coefficient", format_estimate(run.scores.slope))]
    return Section(run.title, lead, facts, drawings)


def training_section(history: Sequence[Step]) -> Section:
    """Loss terms and diagnostics over the steps; validations as marks."""
    steps = [h for h in history if not h.validation]
    validations = [h for h in history if h.validation]
    lead = f"{len(steps)} steps, {len(validations)} validations."
    if not steps:
        return Section("Training", lead)

    def parts(rows: Sequence[Step]) -> dict[str, plots.Points]:
        return {name: _series(rows, "parts", name) for name in steps[0].parts}

    svg = plots.curves(parts(steps), "weighted loss", "loss terms", parts(validations))
    drawings = [Drawing(svg, "Each term as it enters the loss.")]
    for names, ylabel, caption in DIAGNOSTICS:
        series = {name: _series(steps, "diagnostics", name) for name in names}
        series = {name: points for name, points in series.items() if points}
        if series:
            marks = {name: _series(validations, "diagnostics", name) for name in series}
            svg = plots.curves(series, ylabel, f"training {names[0]}", marks)
            drawings.append(Drawing(svg, caption))
    return Section("Training", lead, (), drawings)


def _series(rows: Sequence[Step], group: str, name: str) -> plots.Points:
    """(step, value) of one number; steps that do not record it are passed over."""
    found: list[tuple[float, float]] = []
    for row in rows:
        numbers: dict[str, float | None] = {**(row.parts if group == "parts" else row.diagnostics)}
        value = numbers.get(name)
        if value is not None:  # null in the file: it was not finite
            found.append((row.step, value))
    return found
