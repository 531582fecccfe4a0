"""The verb of `pasto report`: gather what a run left and write it as one page. No printing."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_text, require_file_name, write_text
from pasto_cli.base.format import format_coefficient
from pasto_cli.core.artifact import store
from pasto_cli.core.evaluation.details import with_details
from pasto_cli.core.pairs.anchors import load_anchors, read_anchors
from pasto_cli.core.records.training import Step
from pasto_cli.core.report.page import Contents, Sample, render
from pasto_cli.workflows.dials import open_dial, recipe_of
from pasto_cli.workflows.kept_results import kept_results, say_outdated
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.screen import read_screen
from pasto_cli.workflows.telling import everyday_prompts

HISTORY, SAMPLES = "history.jsonl", "samples.json"
CANDIDATES = 54
"""Held-out prompts that a report chooses its texts from."""
_STEP: TypeAdapter[Step] = TypeAdapter(Step)
_SAMPLES: TypeAdapter[list[Sample]] = TypeAdapter(list[Sample])


def write_report(name: str | None, samples: int, out: Path | None, watch: Watcher) -> Path:
    """Write a run's report.

    Args:
        name: Run folder, or None for the latest run.
        samples: Prompts whose answers are shown, beside a control; texts that are not there yet
            are generated and kept.
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
    found = kept_results(root, meta.ends)
    say_outdated(found, watch)
    texts = _samples(name or str(root), root, samples, meta.ends, watch)
    with watch.task("drawing"):
        contents = Contents(
            meta=meta,
            recipe=recipe,
            history=history,
            evaluations=[with_details(run) for run in found.evaluations if run.method is None],
            comparisons=[run for run in found.evaluations if run.method is not None],
            sentiment=found.sentiment,
            samples=texts,
            candidates=CANDIDATES if any(sample.control for sample in texts) else None,
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


def _samples(
    name: str, root: Path, count: int, ends: tuple[float, float], watch: Watcher
) -> list[Sample]:
    """Texts kept before, or new ones: `count` that show the dial, then the control."""
    if count == 0:
        return []
    kept = [x for x in _kept_samples(root / SAMPLES) if x.ends in (None, ends)]
    shown = [sample for sample in kept if not sample.control]
    if len(shown) < count:
        kept = _new_samples(name, root, count, watch)
        shown = [sample for sample in kept if not sample.control]
    return shown[:count] + [sample for sample in kept if sample.control]


def _kept_samples(path: Path) -> list[Sample]:
    """Texts that an earlier report generated; none where the file cannot be read."""
    try:
        return _SAMPLES.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return []


def _new_samples(name: str, root: Path, count: int, watch: Watcher) -> list[Sample]:
    """Choose prompts, generate texts, and keep them for the next report."""
    from pasto_cli.core.evaluation.tell_apart import ends_apart
    from pasto_cli.core.steering.generation import generate_many

    dial = open_dial(name, watch)
    recipe = recipe_of(dial.meta, dial.folder)
    coefficients = recipe.evaluation.coefficients
    asked, control = everyday_prompts(root, recipe.training.seed, CANDIDATES), _control(root)
    with watch.task(f"looking for the prompts that show the dial, of {len(asked)}"):
        apart = ends_apart(dial.lm, dial.steerer, [*asked, control])
    order = sorted(range(len(asked)), key=lambda i: -apart[i])[:count]
    chosen = [(asked[i], apart[i], False) for i in order] + [(control, apart[-1], True)]
    prompts = [prompt for prompt, _, _ in chosen]
    with watch.task(f"answers to {len(prompts)} prompts", len(prompts)) as advance:
        found = generate_many(dial.lm, dial.steerer, prompts, coefficients, progress=advance)
    made = [
        Sample(
            prompt,
            dict(zip(map(_shown, coefficients), row, strict=True)),
            distance,
            alike,
            dial.ends,
        )
        for (prompt, distance, alike), row in zip(chosen, found, strict=True)
    ]
    kept = json.dumps([sample._asdict() for sample in made], indent=1, ensure_ascii=False)
    write_text(root / SAMPLES, kept)
    return made


def _control(root: Path) -> str:
    """A prompt with one right answer: a held-out anchor of the run, else a bundled one."""
    path = root / runs.ANCHORS
    anchors = read_anchors(path).held_out if path.is_file() else load_anchors("bundled")
    return next((anchor for anchor in anchors if not anchor.opposite), anchors[0]).prompt


def _shown(coefficient: float) -> str:
    return format_coefficient(coefficient) if coefficient else "0 (base)"
