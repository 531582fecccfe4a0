"""Which templates make this model answer under both personas: by itself, and before a training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pasto_cli.base import bundled
from pasto_cli.base.cache import cached_file, keep
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.base.provenance import versions
from pasto_cli.core.evaluation.screen import ScreenSettings, screen_templates
from pasto_cli.core.models import distributed
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.corpora import load_suffixes
from pasto_cli.core.pairs.pairs import personas_of
from pasto_cli.core.recipe.schema import ModelSpec, PairsSpec
from pasto_cli.core.records.screen import Screen
from pasto_cli.workflows.dials import open_model
from pasto_cli.workflows.progress import Watcher

SCREEN = "screen.json"
"""File of a run that holds what its screen saw."""
USUAL = "templates.txt"
"""The bundled templates that pairs are made of where a recipe names none."""
ASKED_BEFORE_TRAINING = 12
"""Templates that are asked at most before a training, which must not wait for long."""


def screen_pairs(spec: PairsSpec, model: ModelSpec, watch: Watcher) -> tuple[PairsSpec, Screen]:
    """Screen the templates of a `pairs` section on a clean base model (`make-pairs --screen`).

    Where the section names no templates, every bundled one is asked.

    Returns:
        The section with the templates that passed, and what the screen saw.

    Raises:
        PastoError: If the section is a file of pairs, or no template passes.
    """
    if spec.file is not None:
        raise PastoError(
            f"{spec.file} holds pairs that are made already: there is no template to screen",
            "Give two words instead.",
        )
    lm = open_model(model, watch)
    with layer_precision(lm, "auto"):
        screen = _screen(spec, lm, ScreenSettings(seed=spec.seed), watch)
    if not screen.kept:
        raise PastoError(*_why_none(screen))
    return spec.model_copy(update={"templates": tuple(screen.kept)}), screen


def screen_for_training(
    spec: PairsSpec, lm: LoadedModel, watch: Watcher, *, force: bool
) -> tuple[PairsSpec, Screen]:
    """Screen a recipe's templates, or the bundled ones that tell the personas apart best.

    Templates are left out where the section says `keep`, otherwise they are only reported: on the
    models that it was tried on, dials from templates that the model partly refuses under were the
    more selective ones (docs/LOG.md).

    Args:
        spec: The `pairs` section, without a file.
        lm: The clean base model.
        watch: Told what is dropped.
        force: Go on with every template where none passes.

    Returns:
        The section with the templates to train on, and what the screen saw.

    Raises:
        PastoError: If the section says `keep`, no template passes, and it is not forced.
    """
    settings = ScreenSettings(seed=spec.seed, at_most=ASKED_BEFORE_TRAINING)
    if spec.screen == "report":
        # What training uses is asked about, and nothing beside it.
        used = list(dict.fromkeys(spec.templates)) or bundled.lines(USUAL)
        screen = _screen(spec, lm, settings, watch, used)
        _report(screen, len(used), watch)
        return spec, screen
    screen = _screen(spec, lm, settings, watch)
    if not screen.kept:
        problem, remedy = _why_none(screen)
        if not force:
            raise PastoError(
                problem, f"{remedy} pasto train --force goes on; pairs.screen: report only says so."
            )
        watch.warn(f"{problem}; going on with all of them")
        return spec.model_copy(update={"templates": _asked(screen)}), screen
    for template in screen.templates:
        if not template.kept:
            watch.note(f"dropped {template.template!r}: {'; '.join(template.problems)}")
    watch.note(
        f"screen: {len(screen.kept)} of {len(screen.templates)} templates make this model answer "
        f"under both personas"
    )
    return spec.model_copy(update={"templates": tuple(screen.kept)}), screen


def _report(screen: Screen, used: int, watch: Watcher) -> None:
    """Say under which templates the model does not answer in both personas."""
    bad, asked = [t for t in screen.templates if not t.kept], len(screen.templates)
    text = (
        f"screen: {len(screen.kept)} of {asked} templates{'' if asked == used else ' asked'} make "
        f"this model answer under both personas"
    )
    if not bad:
        watch.note(text)
        return
    worst = max(bad, key=lambda t: len(t.problems))
    all_of_them = "All" if asked == used else f"All {used}"
    watch.warn(
        f"{text}; of {worst.template!r}: {'; '.join(worst.problems)}. {all_of_them} are used, and "
        f"what was said is in {SCREEN} (pairs.screen: keep leaves them out)"
    )


def write_screen(screen: Screen, run: Path) -> None:
    """Keep what was said under each persona in a run's folder."""
    write_text(run / SCREEN, screen.model_dump_json(indent=1))


def read_screen(run: Path) -> Screen | None:
    """What a run's screen saw; None where there was none, or it cannot be read."""
    try:
        return Screen.model_validate_json((run / SCREEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _asked(screen: Screen) -> tuple[str, ...]:
    return tuple(t.template for t in screen.templates)


def _screen(
    spec: PairsSpec,
    lm: LoadedModel,
    settings: ScreenSettings,
    watch: Watcher,
    asked: Sequence[str] = (),
) -> Screen:
    """The screen of a section, from the cache where the same was asked before.

    Without templates to be asked it is those of the section, or every bundled one.
    """
    every = [*bundled.lines(USUAL), *bundled.lines("templates_steady.txt")]
    templates = list(asked or spec.templates or every)
    questions = bundled.lines("questions.txt")
    suffixes = [suffix for _, suffix in load_suffixes(spec.suffixes)]
    path = _cached(spec, lm, settings, templates, [*questions, *suffixes])
    # One of several processes decides: another one, on a machine of its own, has another cache.
    kept = distributed.all_gather_object(_read(path) if path is not None else None)[0]
    if kept is not None:
        watch.note(f"screen of {len(kept.templates)} templates: from an earlier run")
        return kept
    count = min(len(templates), settings.at_most or len(templates))
    questions_asked = (2 * count + 1) * settings.prompts
    with watch.task(f"screening {count} templates", questions_asked) as advance:
        found = screen_templates(
            lm, templates, personas_of(spec), questions, suffixes, settings, advance
        )
    found = distributed.all_gather_object(found)[0]  # others may round otherwise
    keep(path, lambda scratch: scratch.write_text(found.model_dump_json(), encoding="utf-8"))
    return found


def _cached(
    spec: PairsSpec,
    lm: LoadedModel,
    settings: ScreenSettings,
    templates: Sequence[str],
    texts: Sequence[str],
) -> Path | None:
    """File of a screen in the cache, named by what decides it.

    None for a base without a hash, or without a cache.
    """
    if lm.commit is None:
        return None
    facts = {
        "base": [lm.spec.source, lm.commit, lm.spec.quantization, lm.spec.system],
        "precision": [str(lm.dtype), lm.autocast],
        "personas": personas_of(spec),
        "templates": templates,
        "texts": texts,
        "settings": settings._asdict(),
        "versions": versions(),
    }
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]
    return cached_file("screens", f"{name}.json")


def _read(path: Path) -> Screen | None:
    try:
        return Screen.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _why_none(screen: Screen) -> tuple[str, str]:
    """What is wrong where no template passes, and the next step."""
    total = len(screen.templates)
    failing = {
        side: sum(any(p.startswith(side) for p in t.problems) for t in screen.templates)
        for side in ("+1", "-1")
    }
    neither = sum(not any(p[:2] in failing for p in t.problems) for t in screen.templates)
    # The one with the fewest faults, and of those the one that tells the personas apart best.
    best = min(screen.templates, key=lambda t: (len(t.problems), -t.separation))
    return (
        f"no template makes {screen.model} answer under both personas: of {total} templates "
        f"{failing['+1']} fail at +1, {failing['-1']} at -1, {neither} by what both have in common",
        f"Try other words, --templates of your own, or another model. The nearest was "
        f"{best.template!r}: {'; '.join(best.problems)}.",
    )
