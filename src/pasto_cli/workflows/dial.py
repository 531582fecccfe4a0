"""`pasto dial`: from a model and two words to a dial that can be used.

    recipe -> plan -> train (pairs, screen, elicitation check, ends, certificate) -> three texts

Everything is done by the workflows of the other verbs, from a recipe that is written down: `pasto
train` on it gives the same dial.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.base.format import format_bytes, format_settings
from pasto_cli.core.models import distributed
from pasto_cli.core.pairs.pairs import personas_of
from pasto_cli.core.planning.planner import NoPlan
from pasto_cli.core.recipe.load import dump_recipe, load_recipe, with_settings
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import DevicePlan, Plan
from pasto_cli.core.records.study import Setting
from pasto_cli.workflows import generate
from pasto_cli.workflows.dials import DialSet, open_dial
from pasto_cli.workflows.plan import plan_recipe
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.telling import everyday_prompts, most_telling
from pasto_cli.workflows.train import Trained, train_recipe

START = "honesty/instruct"
"""The recipe whose settings a dial starts from; its templates are of no particular axis."""
QUICK = (
    "pairs.count=60",
    "training.epochs=2",
    "training.validate_every=1",
    "calibration.prompts=6",
    "calibration.tokens=32",
)
"""Settings of a dial that is made to be looked at, not to be published."""
COEFFICIENTS = (-1.0, 0.0, 1.0)
TRIED = 16
"""Everyday prompts of which the finished dial is asked the one that shows it best."""
TOKENS = 64


class Wanted(NamedTuple):
    """What a user asks for."""

    model: str
    positive: str
    negative: str
    recipe: str | Path = START
    """Settings to start from."""
    overrides: Sequence[str] = ()
    """As --set takes them; they have the last word."""
    seed: int | None = None
    quick: bool = False


class Made(NamedTuple):
    """A dial, and three texts at its ends and between."""

    trained: Trained
    plan: Plan | None
    """None where the model cannot be planned, and in several processes."""
    prompt: str
    """What it was asked; empty, as `texts`, for a training that was interrupted."""
    texts: list[str]
    """At -1, 0 and +1; empty for a training that was interrupted."""


def dial_recipe(wanted: Wanted) -> Recipe:
    """The recipe of a dial.

    Raises:
        RecipeError: For unknown keys and values that are not allowed.
        PastoError: If both words are the same, or the recipe cannot be read.
    """
    words = (wanted.positive, wanted.negative)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words)).strip("-")[:48] or "dial"
    given: dict[str, object] = {
        "name": slug,
        "model.source": wanted.model,
        "model.revision": None,
        "pairs.file": None,
        "pairs.personas": None,
        "pairs.words": words,
        # It asks about honesty, and runs without a network; other axes name theirs with --set.
        "evaluation.benchmark": "mini-dilemmas",
    }
    if wanted.seed is not None:
        given |= {"pairs.seed": wanted.seed, "training.seed": wanted.seed}
    settings = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    quick = QUICK if wanted.quick else ()
    recipe = load_recipe(wanted.recipe, [*settings, *quick, *wanted.overrides])
    if recipe.pairs.file is None:
        personas_of(recipe.pairs)  # two words that are the same are refused before all else
    return recipe


def make_dial(
    recipe: Recipe,
    watch: Watcher,
    root: Path,
    *,
    recipe_out: Path | None = None,
    force: bool = False,
    prompt: str | None = None,
) -> Made:
    """Plan, train, calibrate, certify and try a dial.

    Args:
        recipe: From `dial_recipe`.
        watch: Told what happens.
        root: Folder that holds the runs.
        recipe_out: File for the recipe, beside the copy that the run keeps.
        force: Train although no template passes the screen.
        prompt: What the finished dial is asked; None takes the one of `TRIED` everyday prompts at
            which its ends are furthest apart.

    Raises:
        PastoError: For anything a user can mend.
    """
    if recipe_out is not None and recipe_out.exists():
        raise PastoError(f"{recipe_out} exists", "Give another file with --recipe-out.")
    plan = None
    if distributed.size() == 1:  # the plan's step, which has no numbers, cannot be shared
        try:
            plan = plan_recipe(recipe, watch)
            say_whether_it_fits(plan, watch)
        except NoPlan as error:
            watch.note(error.message)
    if recipe_out is not None:
        write_text(recipe_out, dump_recipe(recipe))
    trained = train_recipe(recipe, watch, root, force=force)
    if trained.result.interrupted:
        return Made(trained, plan, prompt or "", [])
    dial = open_dial(str(trained.folder), watch)
    if prompt is None:
        with watch.task(f"looking for the prompt that shows the dial, of {TRIED}"):
            asked = everyday_prompts(trained.folder, recipe.training.seed, TRIED)
            prompt = most_telling(dial, asked)
    dials = DialSet([dial], [1.0], COEFFICIENTS)
    sampling = generate.Sampling(TOKENS, 0.0, recipe.training.seed)
    (answers,) = generate.generate(dials, [prompt], sampling, watch)
    return Made(trained, plan, prompt, answers.texts)


def with_best_settings(recipe: Recipe, trials: int, watch: Watcher, root: Path) -> Recipe:
    """The recipe with the settings that a search found: most strength for a nat of disturbance.

    Args:
        recipe: From `dial_recipe`.
        trials: Trainings of the search; one of that name that was begun before goes on.
        watch: Told what happens.
        root: Folder that holds the runs.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the search goes on when the same is asked again.
        PastoError: For anything a user can mend.
    """
    from pasto_cli.workflows.tune.together import follow

    if distributed.rank() > 0:
        follow(watch)
        found = None
    else:
        found = _searched(recipe, trials, watch, root)
    return with_settings(recipe, distributed.all_gather_object(found)[0])


def _searched(recipe: Recipe, trials: int, watch: Watcher, root: Path) -> dict[str, Setting]:
    """The best settings of a search."""
    from pasto_cli.workflows.tune.study import Wanted as Search
    from pasto_cli.workflows.tune.study import tune

    found = tune(Search(recipe, trials, resume=True, out=root), watch)
    if found.interrupted:
        raise KeyboardInterrupt
    # What a trial reached by luck does not hold on other seeds.
    again = {finalist.number: finalist.each for finalist in found.record.finalists}
    worth = {
        trial.number: fmean(o.strength / max(o.disturbance, 1e-6) for o in again[trial.number])
        for trial in found.record.front
        if trial.number in again
    }
    if not worth:
        raise PastoError(
            "no trial of the search ended with a dial",
            f"Look at {found.page}, or leave --tune out.",
        )
    best = next(t for t in found.record.front if t.number == max(worth, key=worth.__getitem__))
    watch.note(f"the search chose trial {best.number}: {format_settings(best.settings)}")
    return best.settings


def say_whether_it_fits(plan: Plan, watch: Watcher) -> None:
    """A note, or a warning that names what would need less."""
    device: DevicePlan = plan.devices[0]
    peak = format_bytes(device.peak)
    if device.fits is not False:
        watch.note(
            f"plan: {peak} at most on {device.name}, {plan.steps} steps; to download: "
            f"{format_bytes(plan.base.download)}"
        )
        return
    helping = [r for r in plan.remedies if r.fits] or plan.remedies[-1:]
    what = " or ".join(" ".join(f"--set {key}" for key in r.settings) for r in helping)
    watch.warn(
        f"the plan needs {peak}, and {device.name} has {format_bytes(device.memory)}: going on, "
        f"but memory may run out" + (f"; {what} needs less" if what else "")
    )
