"""What is said of a model before it is trained: what will be adapted, and where replies begin."""

from collections.abc import Sequence

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import place_writers, survey
from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.workflows.progress import Watcher


def describe_model(lm: LoadedModel, spec: AdapterSpec, watch: Watcher) -> None:
    """Tell which modules of which layers write to the residual stream, and what precedes replies.

    Args:
        lm: The model.
        spec: The recipe's adapter section.
        watch: Told of it.

    Raises:
        PastoError: If no module can be adapted, or the chat template has no place for a reply.
    """
    found = survey(lm.model)
    place_writers(
        found.writers, len(lm.layers), spec.first_layer, spec.last_layer, spec.max_modules
    )
    rows = [("layers", "writers", "left alone")]
    for kind in found.kinds():
        aside = ", ".join(f"{path} (routed experts)" for path in kind.left_alone)
        rows.append((ranges(kind.layers), ", ".join(kind.writers) or "none", aside))
    if not any(aside for _, _, aside in rows[1:]):
        rows = [(*row[:2], "") for row in rows]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for layers, writers, aside in rows:
        watch.note(f"{layers:<{first}}  {writers:<{second}}  {aside}".rstrip())
    lm.chat.text("Say one word.")  # a template without a place for a reply is refused here
    if (note := lm.chat.start.note) is not None:
        # A thought that was always there in the model's own training may be missed.
        (watch.warn if lm.chat.start.thought == "opened" else watch.note)(note)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
