"""The model's own answers of a run: asked once, kept in answers.jsonl of its folder."""

from pathlib import Path

from pasto_cli.base import runs
from pasto_cli.core.models import distributed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.pairs.answers import (
    AnswerSplit,
    draw_asked,
    load_questions,
    read_answers,
    require_answers,
    split_answers,
    usable,
    write_answers,
)
from pasto_cli.core.pairs.pairs import PairSet
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.training.own_answers import ask_model
from pasto_cli.workflows.prepare import require_own
from pasto_cli.workflows.progress import Watcher


def recipe_questions(recipe: Recipe) -> list[str]:
    """The recipe's questions to the model; none where it wants no answers.

    Raises:
        PastoError: If they cannot be read, or were taken from the recipe's own benchmark.
    """
    spec = recipe.pairs.answers
    if spec is None:
        return []
    questions = load_questions(spec.questions)
    require_own(recipe, [Anchor(question, spec.questions) for question in questions], "questions")
    return questions


def run_answers(
    recipe: Recipe,
    pair_set: PairSet,
    lm: LoadedModel,
    folder: Path,
    watch: Watcher,
    begun: bool = False,
) -> AnswerSplit | None:
    """Trained and held-out pairs of answers, from the run's folder or from the model itself.

    Args:
        recipe: For `pairs.answers` and the seed of the split.
        pair_set: For the personas.
        lm: The clean base model.
        folder: Of the run; the answers are written there.
        watch: Told of progress, and of what was dropped.
        begun: Whether training has begun, on answers that must be there.

    Returns:
        None where the recipe wants no answers.

    Raises:
        PastoError: If too few answers are of use, or those of the run cannot be read.
    """
    spec = recipe.pairs.answers
    if spec is None:
        return None
    path = folder / runs.ANSWERS
    if begun or path.is_file():
        return read_answers(path)
    asked = draw_asked(recipe_questions(recipe), pair_set.pairs, spec)
    # One process asks: what another one samples may differ, and all must train on the same.
    found = None
    if distributed.rank() == 0:
        with watch.task(f"{2 * len(asked)} answers of the model's own", 2 * len(asked)) as advance:
            found = ask_model(lm, asked, spec, advance)
    pairs, dropped = usable(distributed.all_gather_object(found)[0])
    for why, count in dropped.items():
        watch.warn(f"{count} of {len(asked)} pairs of answers dropped: {why}")
    require_answers(pairs, dropped)
    split = split_answers(pairs, spec.held_out, recipe.training.seed)
    watch.note(f"answers: {len(split.train)} pairs to train on, {len(split.held_out)} held out")
    write_answers(split, path)
    return split
