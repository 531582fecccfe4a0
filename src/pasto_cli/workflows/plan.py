"""`pasto plan`: what a recipe will need, before anything large is fetched.

After a training the same plan is compared with what was measured.

    recipe, configuration, tokenizer -> pairs in tokens -> `core.planning`: phases, time, remedies
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import Chat, TokenPair, tokenise_pairs
from pasto_cli.core.models.configuration import BaseFiles, base_files
from pasto_cli.core.models.gguf import read_tokenizer
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.loading import load_chat
from pasto_cli.core.models.memory import peak_memory
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.pairs.split import split_pairs
from pasto_cli.core.planning.make import make_plan
from pasto_cli.core.planning.planner import Known, Target, named_target, this_target
from pasto_cli.core.planning.words import word_chat
from pasto_cli.core.recipe.schema import ModelSpec, Recipe
from pasto_cli.core.records.plan import Measured, PhaseName, Plan, PlanRecord
from pasto_cli.core.training.recorder import HISTORY
from pasto_cli.workflows.prepare import Tokens, recipe_anchors
from pasto_cli.workflows.progress import Watcher

PLAN = "plan.json"
"""File of a run that holds what was planned and what was measured."""
SMALLEST = 20_000_000
"""Parameters of a base below which a training is not compared with a plan: the process itself is
then nearly all that it holds."""


def plan_recipe(
    recipe: Recipe, watch: Watcher, *, file: Path | None = None, memories: Sequence[float] = ()
) -> Plan:
    """What a recipe will need here, and on devices with so much memory.

    Args:
        recipe: The whole recipe.
        watch: Told of progress.
        file: Where the recipe was read: a configuration of its base may lie beside it.
        memories: GiB of devices that are not here.

    Raises:
        PastoError: If there is no such model, nothing is known of it, or it cannot be adapted.
    """
    unknown: list[str] = []
    with watch.task(f"planning {recipe.name}: one step without numbers"):
        files = base_files(recipe.model, file)
        chat = _chat(recipe.model, files, unknown)
        train, validation = _split(recipe, chat)
        if files.download is None:
            unknown.append("the size of the download: no header of the weights could be read")
        if files.stored is None:
            unknown.append("how the weights are stored: 2 bytes per number were taken")
        if recipe.pairs.answers is not None or recipe.losses.anchor is not None:
            unknown.append("what the base answers: the longest answers were taken")
        targets = _targets(recipe, memories, unknown)
        known = Known(recipe, files, chat, train, validation, _anchors(recipe), unknown)
        return make_plan(known, targets)


def _targets(recipe: Recipe, memories: Sequence[float], unknown: list[str]) -> list[Target]:
    named = [named_target(recipe, gib) for gib in memories]
    try:
        return [this_target(recipe), *named]
    except PastoError as error:
        if not named:
            raise PastoError(
                error.message, f"{error.hint} For another machine: --device-memory 24"
            ) from None
        unknown.append(f"this machine: {error.message}")
        return named


def _chat(spec: ModelSpec, files: BaseFiles, unknown: list[str]) -> Chat:
    """The base's own tokenizer, or words where it is not here."""
    try:
        if files.dequantise:  # without turning its weights into a folder
            return Chat(read_tokenizer(Path(files.origin)), spec.system)
        return load_chat(spec)
    except PastoError:
        unknown.append("the tokens of a prompt: the tokenizer is not here, and words were counted")
        return word_chat(spec.system)


def _split(recipe: Recipe, chat: Chat) -> tuple[list[TokenPair], int]:
    """Training pairs in tokens, and the number of validation pairs."""
    spec = recipe.training
    split = split_pairs(
        make_pairs(recipe.pairs).pairs,
        validation=spec.validation,
        certificate=spec.certificate,
        seed=spec.seed,
    )
    train, dropped = tokenise_pairs(split.train, chat)
    if len(train) < 2:
        raise PastoError(
            f"{len(train)} training pairs are too few ({'; '.join(dropped) or 'none was dropped'})",
            "Raise pairs.count or add suffixes.",
        )
    return train, len(split.validation)


def _anchors(recipe: Recipe) -> list[Anchor]:
    found = recipe_anchors(recipe)
    return [] if found is None else found.train


class Marks:
    """The most memory that a training has held until the end of each phase.

    Args:
        lm: The loaded base.
    """

    def __init__(self, lm: LoadedModel) -> None:
        self.device = lm.device
        self.phases: dict[PhaseName, int] = {}
        self.reached("load")

    def reached(self, phase: PhaseName) -> None:
        """A phase has ended."""
        self.phases[phase] = peak_memory(self.device)


def compare_with_plan(
    recipe: Recipe, lm: LoadedModel, tokens: Tokens, marks: Marks, run: Path, watch: Watcher
) -> None:
    """Keep plan and measured peak in a run's plan.json, and say how near they are.

    The plan is made after the training, from what could be known before it, so that it changes
    nothing of what is measured. A failure of it is no failure of the training.
    """
    parameters = sum(p.numel() for p in lm.model.parameters())
    if parameters < SMALLEST or distributed.size() > 1:
        return
    spec = recipe.model
    here = not is_hub_id(spec.source) or Path(spec.source).is_dir()
    try:
        files = base_files(spec) if here else BaseFiles(lm.model.config, spec.source, None, 0)
        known = Known(
            recipe, files, lm.chat, tokens.train, len(tokens.validation), _anchors(recipe)
        )
        plan = make_plan(known, [this_target(recipe)])
    except PastoError as error:
        watch.note(f"no plan to compare with: {error.message}")
        return
    measured = Measured(
        device=str(marks.device), phases=marks.phases, step=step_seconds(run / HISTORY)
    )
    record = PlanRecord(plan=plan, measured=measured)
    write_text(run / PLAN, record.model_dump_json(indent=1) + "\n")
    watch.note(comparison(record))


def comparison(record: PlanRecord) -> str:
    """Planned against measured, one line."""
    planned, measured = record.plan, record.measured
    assert measured is not None and record.error is not None
    line = (
        f"memory: planned {planned.devices[0].peak / 2**30:.2f} GiB, measured "
        f"{measured.peak / 2**30:.2f} GiB ({record.error:+.0%})"
    )
    if planned.duration is None or measured.step is None:
        return line
    return f"{line}; a step: planned {planned.duration.step:.1f} s, measured {measured.step:.1f} s"


def step_seconds(history: Path) -> float | None:
    """Median seconds of an optimiser step from a run's history.jsonl; None for fewer than two."""
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    each = [
        after["seconds"] - before["seconds"]
        for before, after in zip(lines, lines[1:], strict=False)
        if not after["validation"] and after["seconds"] > before["seconds"]
    ]
    return statistics.median(each) if each else None
