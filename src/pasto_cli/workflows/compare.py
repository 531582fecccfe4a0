"""A dial beside its baselines and beside its other seeds: the same items, the same scores, one
table."""

from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.baselines import BASELINES, build_baseline
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    NeutralProbe,
    coefficient_at_budget,
)
from pasto_cli.core.evaluation.evaluator import NEEDED, evaluate, tokenise
from pasto_cli.core.evaluation.metrics import Table, slope_difference
from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.models.chat import tokenise_pairs
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.steering.steerer import Scaled, Steerer
from pasto_cli.workflows.dials import Dial, pairs_of
from pasto_cli.workflows.evaluate import (
    LOW_MEMORY,
    Plan,
    disturbances,
    keep_evaluation,
    neutral_probe,
)
from pasto_cli.workflows.progress import Watcher

PAIRS = 64
"""Training pairs that the baselines' directions are made from."""


class Method(NamedTuple):
    """One row of the comparison."""

    name: str
    run: EvalRun
    strength: tuple[float, float]
    """Coefficients of the method that stand for +1 and -1."""


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown baseline before a model is loaded.

    Raises:
        PastoError: With the names that there are.
    """
    for name in names:
        if name not in BASELINES:
            raise PastoError(f"unknown baseline {name!r}", f"There are {', '.join(BASELINES)}.")


def compare(
    dial: Dial, names: Sequence[str], plan: Plan, equal_kl: bool, watch: Watcher
) -> list[Method]:
    """The dial and its baselines on one benchmark; each result is kept beside the run.

    Args:
        dial: The trained adapter.
        names: Of `BASELINES`.
        plan: Items and value; they are put into tokens once, but for methods that work by words.
        equal_kl: Scale each method so that it disturbs the base by 1 nat (95th percentile) at +1
            and at -1; prompts cannot be scaled and stand as they are.
        watch: Told of progress.
    """
    spec = Recipe.model_validate(dial.meta.recipe).evaluation
    with watch.task("building baselines"):
        steerers = {"adapter": dial.steerer} | _baselines(dial, names)
        probe = neutral_probe(dial)
        questions = tokenise(dial.lm, plan.part)
    found = []
    for name, steerer in steerers.items():
        sizes = (1.0, 1.0)
        if equal_kl and steerer.prompt_prefix(0.0) is None:
            sizes = _equal_sizes(dial, name, steerer, probe, watch)
            steerer = Scaled(steerer, *sizes)
        facts = plan.provenance | {"method": name, "equal_kl": equal_kl, "strength": list(sizes)}
        with (
            enough_memory(LOW_MEMORY),
            watch.task(
                f"{name}: {len(plan.part.items)} questions", len(plan.part.items)
            ) as advance,
        ):
            run = evaluate(
                dial.lm,
                steerer,
                plan.part,
                plan.value,
                NEEDED,
                spec.pmass_threshold,
                spec.node_budget,
                spec.seed,
                facts,
                advance,
                questions=questions,
            )
        scores = run.scores | (
            {"slope_minus_adapter": _difference(run, found[0].run, spec.seed)} if found else {}
        )
        run = run.model_copy(
            update={
                "scores": scores,
                "disturbance": disturbances(dial, steerer, probe, NEEDED, spec.seed),
            }
        )
        keep_evaluation(dial, run, name + ("-equal-kl" if equal_kl else "-compared"))
        found.append(Method(name, run, sizes))
    return found


def _difference(run: EvalRun, adapter: EvalRun, seed: int) -> dict[str, float | int]:
    one, other = (Table(r.rows, r.value, r.coefficients, r.pmass_threshold) for r in (run, adapter))
    return slope_difference(one, other, seed)._asdict()


def _baselines(dial: Dial, names: Sequence[str]) -> dict[str, Steerer]:
    if not names:
        return {}
    recipe = Recipe.model_validate(dial.meta.recipe)
    pairs, _ = tokenise_pairs(pairs_of(dial).pairs[:PAIRS], dial.lm.chat)
    states = collect_activations(dial.lm, pairs, [], recipe.evaluation.node_budget)
    depth = dial.lm.depth_index(recipe.subspace.depth)
    personas = (dial.meta.personas[0], dial.meta.personas[1])
    return {
        name: build_baseline(
            name, dial.lm, personas, states, dial.adapter, depth, recipe.training.seed
        )
        for name in dict.fromkeys(names)
    }


def _equal_sizes(
    dial: Dial, name: str, steerer: Steerer, probe: NeutralProbe, watch: Watcher
) -> tuple[float, float]:
    with watch.task(f"{name}: the coefficients that disturb by 1 nat"):
        up, down = (coefficient_at_budget(dial.lm, steerer, probe, sign) for sign in (1.0, -1.0))
    if LARGEST_COEFFICIENT in (up, down):
        watch.warn(
            f"{name}: no coefficient up to {LARGEST_COEFFICIENT:g} disturbs this model by 1 nat"
        )
    return up, down
