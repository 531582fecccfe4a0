"""`pasto make-pairs --screen`: which templates make this model answer under both personas."""

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.screen import ScreenSettings, screen_templates
from pasto_cli.core.pairs.corpora import load_suffixes
from pasto_cli.core.pairs.pairs import personas_of
from pasto_cli.core.recipe.schema import ModelSpec, PairsSpec
from pasto_cli.core.records.screen import Screen
from pasto_cli.workflows.dials import open_model
from pasto_cli.workflows.progress import Watcher


def screen_pairs(spec: PairsSpec, model: ModelSpec, watch: Watcher) -> tuple[PairsSpec, Screen]:
    """Screen the templates of a `pairs` section on a clean base model.

    Where the section names no templates, the bundled steady ones are tried beside the usual ones.

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
    templates = list(spec.templates) or [
        *bundled.lines("templates.txt"),
        *bundled.lines("templates_steady.txt"),
    ]
    lm = open_model(model, watch)
    settings = ScreenSettings(seed=spec.seed)
    questions = bundled.lines("questions.txt")
    suffixes = [suffix for _, suffix in load_suffixes(spec.suffixes)]
    asked = (2 * len(templates) + 1) * settings.prompts
    with watch.task(f"screening {len(templates)} templates", asked) as advance:
        screen = screen_templates(
            lm, templates, personas_of(spec), questions, suffixes, settings, advance
        )
    if not screen.kept:
        raise PastoError(*_why_none(screen))
    return spec.model_copy(update={"templates": tuple(screen.kept)}), screen


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
