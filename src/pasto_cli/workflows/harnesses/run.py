"""`pasto eval --harness lm_eval`: tasks of another harness at several coefficients of a dial."""

# The harness is an optional extra.
# pyright: reportMissingImports=false

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from pasto_cli.base.errors import PastoError
from pasto_cli.base.format import format_coefficient
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.records.harness import HarnessRun, HarnessScore
from pasto_cli.workflows.dials import Dial
from pasto_cli.workflows.evaluate import keep, provenance_of
from pasto_cli.workflows.progress import Watcher

HARNESS = "lm_eval"
COEFFICIENTS = (-1.0, 0.0, 1.0)
OLDEST = "0.4.12"
"""The first version whose `TaskManager` loads tasks as this module asks it to."""
INSTALL = f"Install it: pip install 'lm_eval>={OLDEST}'"
LOW_MEMORY = "Load the base with --quantization 4bit, or take a smaller --batch-size."
LONGEST_NAME = 100
"""Characters of the file name that tells the tasks."""


class Asked(NamedTuple):
    """What a user wants measured."""

    tasks: Sequence[str]
    """Names of tasks, groups or tags of the harness; `*` and `?` stand for anything."""
    coefficients: Sequence[float]
    limit: int | None
    """Documents of each task at most."""
    folder: Path | None
    """Where task files of the user's own are."""
    batch_size: int


class Prepared(NamedTuple):
    """What is asked, in the harness's own terms."""

    asked: Asked
    names: list[str]
    """Names of tasks that it knows."""
    manager: Any
    """Its `TaskManager`."""


class HarnessMeasured(NamedTuple):
    """What the harness measured."""

    run: HarnessRun
    path: Path | None
    """The file that holds it; None for an adapter that is not in a run folder."""


def check_harness(name: str) -> None:
    """Refuse a harness that is unknown, missing or too old, before a model is loaded.

    Raises:
        PastoError: If it is.
    """
    if name != HARNESS:
        raise PastoError(f"--harness {name!r} is not known", f"Write --harness {HARNESS}")
    if importlib.util.find_spec("lm_eval") is None:
        raise PastoError("lm_eval is not installed", INSTALL)
    version = importlib.metadata.version(HARNESS)
    if Version(version) < Version(OLDEST):
        raise PastoError(f"lm_eval {version} is too old", INSTALL)


def prepare(asked: Asked) -> Prepared:
    """Find and load what was asked, before a model is.

    Raises:
        PastoError: If the harness does not know a task, or cannot load its data.
    """
    from lm_eval.tasks import TaskManager

    if asked.folder is not None and not asked.folder.is_dir():
        raise PastoError(f"{asked.folder} is no folder", "Give the folder of your task files.")
    manager = TaskManager(include_path=None if asked.folder is None else str(asked.folder))
    names: list[str] = []
    for task in asked.tasks:
        found = manager.match_tasks([task])
        if not found:
            raise PastoError(
                f"{HARNESS} has no task {task!r}",
                f"List them: {HARNESS} ls tasks; those of your own: --data FOLDER",
            )
        names += found
    names = list(dict.fromkeys(names))
    try:
        manager.load([*names])
    except Exception as error:  # tasks are code: a data set, a network or a package may be missing
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PastoError(
            f"{HARNESS} cannot load {', '.join(names)}: {reason}",
            f"Try it without a dial: {HARNESS} --model dummy --tasks {','.join(names)} --limit 1",
        ) from None
    return Prepared(asked, names, manager)


def run_tasks(dial: Dial, prepared: Prepared, watch: Watcher) -> HarnessMeasured:
    """Run tasks at each coefficient, and keep what the harness says beside the run.

    Raises:
        PastoError: If a coefficient is not finite, or memory runs out.
    """
    asked = prepared.asked
    coefficients = sorted(dict.fromkeys(asked.coefficients))
    scores: list[HarnessScore] = []
    with enough_memory(LOW_MEMORY):
        for a in coefficients:  # the harness has progress bars of its own
            watch.note(f"{HARNESS}: {', '.join(asked.tasks)} at {format_coefficient(a)}")
            scores += _scores(_evaluate(dial, a, prepared), a)
    seed, version = dial.recipe.evaluation.seed, importlib.metadata.version(HARNESS)
    run = HarnessRun(
        harness=HARNESS,
        tasks=list(asked.tasks),
        coefficients=coefficients,
        limit=asked.limit,
        scores=scores,
        provenance=provenance_of(dial, seed, asked.limit) | {HARNESS: version},
    )
    text = run.model_dump_json(indent=1)
    return HarnessMeasured(run, keep(dial, file_name(asked.tasks), text, watch))


def file_name(tasks: Sequence[str]) -> str:
    """`lm_eval-arc_easy-hellaswag.json`: other tasks have another file."""
    text = "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", task) for task in tasks)
    return f"{HARNESS}-{text[:LONGEST_NAME]}.json"


def _evaluate(dial: Dial, coefficient: float, prepared: Prepared) -> Mapping[str, Any]:
    """What the harness returns at one coefficient."""
    from lm_eval.evaluator import simple_evaluate

    from pasto_cli.workflows.harnesses.dial_lm import PastoLM

    lm = PastoLM(dial=dial, coeff=coefficient, batch_size=prepared.asked.batch_size)
    found = simple_evaluate(
        lm,
        tasks=[*prepared.names],
        limit=prepared.asked.limit,
        task_manager=prepared.manager,
        log_samples=False,
    )
    assert found is not None  # only processes other than the first get nothing
    return found


def _scores(found: Mapping[str, Any], coefficient: float) -> list[HarnessScore]:
    """Every metric of every task and group that the harness returns."""
    scores = []
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        better = found["higher_is_better"].get(task, {})
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            scores.append(
                HarnessScore(
                    task=task,
                    metric=metric if filtered == "none" else key,
                    higher_is_better=better.get(metric),
                    coefficient=coefficient,
                    value=float(value),
                    stderr=float(error) if isinstance(error, int | float) else None,
                    n=_documents(found, task),
                )
            )
    return scores


def _documents(found: Mapping[str, Any], task: str) -> int:
    """Documents of a task that were asked; those of a group are its tasks' together."""
    counts = found["n-samples"].get(task)
    if counts is not None:
        return int(counts["effective"])
    return sum(_documents(found, part) for part in found["group_subtasks"].get(task, ()))
