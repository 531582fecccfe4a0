"""The verb of `pasto report`: gather what a run left and write it as one page. No printing."""

import json
from pathlib import Path

from pasto_cli.base import bundled, runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.artifact import store
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import SentimentRun
from pasto_cli.core.report.page import Sample, render
from pasto_cli.workflows.dials import open_dial
from pasto_cli.workflows.evaluate import SENTIMENT
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.publish import evaluations_of

SAMPLES = "samples.json"


def write_report(name: str | None, samples: int, out: Path | None, watch: Watcher) -> Path:
    """Write a run's report.

    Args:
        name: Run folder, or None for the latest run.
        samples: Prompts whose answers are shown; texts that are not there yet are generated and
            kept.
        out: Where to write; report.html in the run's folder otherwise.
        watch: Told of progress.

    Raises:
        PastoError: If there is no such run on this machine, or a file of it cannot be read.
    """
    folder = runs.adapter_folder(name)
    if folder is None or not (folder.parent / "recipe.yaml").exists():
        raise PastoError(
            f"{name}: a report needs the folder of a run",
            "Give a folder under runs/, such as runs/latest.",
        )
    root = folder.parent
    if name is None:
        watch.note(f"run: {root}")
    meta = store.read_meta(folder)
    try:
        recipe = (root / "recipe.yaml").read_text(encoding="utf-8")
        lines = (
            (root / "history.jsonl").read_text(encoding="utf-8").splitlines()
            if (root / "history.jsonl").exists()
            else []
        )
        if lines and not lines[-1].endswith("}"):
            lines.pop()  # a training that was killed may leave half a line
        history = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise PastoError(
            f"{root}: history.jsonl or recipe.yaml cannot be read ({error})", "Train again."
        ) from None
    sentiment = _sentiment_of(root)
    texts = _samples(name or str(root), root, sentiment, samples, watch)
    with watch.task("drawing"):
        page = render(
            meta.model_dump(mode="json"), recipe, history, evaluations_of(root), sentiment, texts
        )
    path = out or root / "report.html"
    write_text(path, page)
    return path


def _sentiment_of(root: Path) -> SentimentRun | None:
    path = root / "eval" / f"{SENTIMENT}.json"
    try:
        return SentimentRun.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _samples(
    name: str, root: Path, sentiment: SentimentRun | None, count: int, watch: Watcher
) -> list[Sample]:
    """Texts of the sentiment benchmark, or those kept before, or new ones."""
    if count == 0:
        return []
    if sentiment is not None:
        prompts = list(dict.fromkeys(t.prompt for t in sentiment.texts))[:count]
        return [
            Sample(p, {_signed(t.coefficient): t.text for t in sentiment.texts if t.prompt == p})
            for p in prompts
        ]
    try:
        kept = [
            Sample(x["prompt"], x["texts"])
            for x in json.loads((root / SAMPLES).read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    if len(kept) >= count:
        return kept[:count]
    from pasto_cli.core.steering.generation import generate_many

    dial = open_dial(name, watch)
    coefficients = Recipe.model_validate(dial.meta.recipe).evaluation.coefficients
    prompts = bundled.lines("sentiment_prompts.txt")[:count]
    with watch.task(f"answers to {count} prompts", count) as advance:
        found = generate_many(dial.lm, dial.steerer, prompts, coefficients, progress=advance)
    made = [
        Sample(p, dict(zip(map(_signed, coefficients), row, strict=True)))
        for p, row in zip(prompts, found, strict=True)
    ]
    write_text(
        root / SAMPLES, json.dumps([s._asdict() for s in made], indent=1, ensure_ascii=False)
    )
    return made


def _signed(coefficient: float) -> str:
    return f"{coefficient:+g}" if coefficient else "0 (base)"
