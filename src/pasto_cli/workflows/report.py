"""The verb of `pasto report`: gather what a run left and write it as one page. No printing."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from pasto_cli.base import bundled, runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_text, require_file_name, write_text
from pasto_cli.base.format import format_coefficient
from pasto_cli.core.artifact import store
from pasto_cli.core.evaluation.details import with_details
from pasto_cli.core.records.evaluation import SentimentRun
from pasto_cli.core.records.training import Step
from pasto_cli.core.report.page import Contents, Sample, render
from pasto_cli.workflows.dials import open_dial, recipe_of
from pasto_cli.workflows.evaluate import SENTIMENT
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.publish import evaluations_of
from pasto_cli.workflows.screen import read_screen

HISTORY, SAMPLES = "history.jsonl", "samples.json"
_STEP: TypeAdapter[Step] = TypeAdapter(Step)
_SAMPLES: TypeAdapter[list[Sample]] = TypeAdapter(list[Sample])


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
    if out is not None:
        require_file_name(out)
    folder = runs.adapter_folder(name)
    if folder is None or not (folder.parent / "recipe.yaml").exists():
        raise PastoError(
            f"{name}: a report needs the folder of a run",
            "Give a folder under runs/, such as runs/latest.",
        )
    root = folder.parent
    path = out or root / "report.html"
    if name is None:
        watch.note(f"run: {root}")
    meta = store.read_meta(folder)
    recipe, history = _recipe_of(root), _history_of(root, watch)
    evaluations = evaluations_of(root)
    sentiment = sentiment_of(root)
    texts = _samples(name or str(root), root, sentiment, samples, watch)
    with watch.task("drawing"):
        contents = Contents(
            meta=meta,
            recipe=recipe,
            history=history,
            evaluations=[with_details(run) for run in evaluations if run.method is None],
            comparisons=[run for run in evaluations if run.method is not None],
            sentiment=sentiment,
            samples=texts,
            screen=read_screen(root),
        )
        page = render(contents)
    write_text(path, page)
    return path


def _recipe_of(root: Path) -> str:
    """The resolved recipe, as it is written."""
    path = root / "recipe.yaml"
    try:
        return read_text(path)
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read ({error.strerror or error})", "Put the run's file back."
        ) from None


def _history_of(root: Path, watch: Watcher) -> list[Step]:
    """What every step told; a line that cannot be read costs that line."""
    path = root / HISTORY
    try:
        # Bytes that are no text spoil their own line only.
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        watch.warn(f"{path} cannot be read ({error.strerror or error}): no training is shown")
        return []
    steps: list[Step] = []
    damaged: list[int] = []
    lines = text.removeprefix("\ufeff").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip("\0 \r\t"):
            continue
        try:
            steps.append(_STEP.validate_json(line))
        except ValueError:
            # A training that was killed may leave half a line at the end: that is no damage.
            if number < len(lines):
                damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        watch.warn(
            f"{path}: {len(damaged)} damaged lines are left out ({shown}); {len(steps)} are shown"
        )
    return steps


def sentiment_of(root: Path) -> SentimentRun | None:
    """The sentiment benchmark in a run's folder, if it was run and can be read."""
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
            Sample(p, {_shown(t.coefficient): t.text for t in sentiment.texts if t.prompt == p})
            for p in prompts
        ]
    kept = _kept_samples(root / SAMPLES)
    return kept[:count] if len(kept) >= count else _new_samples(name, root, count, watch)


def _kept_samples(path: Path) -> list[Sample]:
    """Texts that an earlier report generated; none where the file cannot be read."""
    try:
        return _SAMPLES.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return []


def _new_samples(name: str, root: Path, count: int, watch: Watcher) -> list[Sample]:
    """Generate texts, and keep them for the next report."""
    from pasto_cli.core.steering.generation import generate_many

    dial = open_dial(name, watch)
    coefficients = recipe_of(dial.meta, dial.folder).evaluation.coefficients
    prompts = bundled.lines("sentiment_prompts.txt")[:count]
    with watch.task(f"answers to {count} prompts", count) as advance:
        found = generate_many(dial.lm, dial.steerer, prompts, coefficients, progress=advance)
    made = [
        Sample(p, dict(zip(map(_shown, coefficients), row, strict=True)))
        for p, row in zip(prompts, found, strict=True)
    ]
    kept = [{"prompt": s.prompt, "texts": s.texts} for s in made]
    write_text(root / SAMPLES, json.dumps(kept, indent=1, ensure_ascii=False))
    return made


def _shown(coefficient: float) -> str:
    return format_coefficient(coefficient) if coefficient else "0 (base)"
