"""The report of a run: one HTML file with its plots inside, that opens from disk and prints.

From records only: everything that it shows was measured or worked out before. No torch, no network.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2

from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import EvalRun, Evaluated, SentimentRun
from pasto_cli.core.records.screen import Screen
from pasto_cli.core.records.training import ImportRecord, Step
from pasto_cli.core.report.evaluation_sections import comparison_sections, evaluation_section
from pasto_cli.core.report.sections import (
    Section,
    certificate_section,
    screen_section,
    sentiment_section,
    training_section,
)

_HERE = resources.files("pasto_cli.core.report")
CITATIONS = (
    "AntiPaSTO: Anti-Parallel Subspace Training for Ordered steering. arXiv 2601.07473.",
    "DailyDilemmas: Y. Y. Chiu, L. Jiang, Y. Choi. arXiv 2410.02683 (CC BY 4.0), where it was "
    "used.",
    "VADER: C. J. Hutto, E. Gilbert. ICWSM 2014, where sentiment was scored.",
)


class Sample(NamedTuple):
    """Greedy answers to one prompt at several coefficients."""

    prompt: str
    texts: Mapping[str, str]
    """Coefficient -> text."""
    apart: float | None = None
    """How far the dial's ends are apart on the prompt, nats per token (`ends_apart`)."""
    control: bool = False
    """A held-out anchor: the dial should change nothing there."""
    ends: tuple[float, float] | None = None
    """What +1 and -1 stood for; older files do not say."""


class Contents(NamedTuple):
    """Everything that a page shows."""

    meta: Meta
    """pasto.json."""
    recipe: str
    """The resolved recipe, YAML."""
    history: Sequence[Step] = ()
    """Lines of history.jsonl."""
    evaluations: Sequence[Evaluated] = ()
    """Benchmarks measured with the dial alone."""
    comparisons: Sequence[EvalRun] = ()
    """Benchmarks measured with the dial and its baselines."""
    sentiment: SentimentRun | None = None
    """The sentiment benchmark, if it was run."""
    samples: Sequence[Sample] = ()
    candidates: int | None = None
    """Prompts that the samples were chosen from."""
    screen: Screen | None = None
    """What the base model says under each persona."""


def render(contents: Contents) -> str:
    """The page."""
    meta = contents.meta
    return template("page.html").render(
        name=meta.trained_with.name,
        personas=meta.personas,
        source=meta.base.spec.source,
        sections=_sections(contents),
        samples=contents.samples,
        candidates=contents.candidates,
        recipe=contents.recipe,
        making=_making(meta),
        fingerprints=meta.base.fingerprints,
        citations=CITATIONS,
        measured=bool(contents.evaluations),
    )


def template(name: str) -> jinja2.Template:
    """A page of this folder, with the style that all of them share."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    page = (_HERE / name).read_text(encoding="utf-8")
    return environment.from_string(page, globals={"style": style})


def _sections(contents: Contents) -> list[Section]:
    # The published fault after what stands without it.
    own = sorted(contents.evaluations, key=lambda e: e.run.label_sign != "own")
    sections = [certificate_section(contents.meta)]
    if contents.screen is not None:
        sections.append(screen_section(contents.screen))
    sections += [evaluation_section(evaluated) for evaluated in own]
    sections += comparison_sections(contents.comparisons)
    if contents.sentiment is not None:
        sections.append(sentiment_section(contents.sentiment))
    if contents.history:
        sections.append(training_section(contents.history))
    return sections


def _making(meta: Meta) -> dict[str, str]:
    """How the adapter was made, for the table at the end."""
    base, training = meta.base, meta.training
    if isinstance(training, ImportRecord):
        trained = f"imported from {training.imported}"
    else:
        trained = (
            f"{training.steps} steps, best epoch {training.best_epoch}, "
            f"seed {meta.trained_with.training.seed}"
        )
    if meta.largest_angle is None:
        reach = f"kind {meta.kind}, linear in the coefficient"
    else:
        reach = f"largest rotation {meta.largest_angle:.1f} degrees"
    return {
        "base model": f"{base.spec.source} ({base.architecture}, {base.dtype}, "
        f"quantisation {base.spec.quantization})",
        "base commit or hash": base.commit or "not known",
        "pairs": f"{sum(meta.num_pairs.values())}; SHA-256 {meta.pairs_sha256}",
        "modules": f"{len(base.fingerprints)} adapted; {reach}",
        "training": trained,
        "versions": ", ".join(f"{name} {version}" for name, version in meta.versions.items()),
        "made": meta.created,
    }
