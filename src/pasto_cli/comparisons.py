"""A dial beside its baselines: the same items, the same scores, and (if asked) the same disturbance of the base model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli import bundled
from pasto_cli.core.calibration import end_states
from pasto_cli.core.chat import tokenise_pairs
from pasto_cli.core.steering import Steerer
from pasto_cli.core.strength import STRONGEST, Scaled, disturbance, equal_strength, make_probe
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.baselines import BASELINES, PromptSteerer, build_baseline
from pasto_cli.evaluation.benchmarks import Benchmark
from pasto_cli.evaluation.evaluator import evaluate
from pasto_cli.evaluation.results import EvalRun
from pasto_cli.pairs import Pair, make_pairs, read_pairs
from pasto_cli.recipe import Recipe
from pasto_cli.workflows import Opened, Watcher

PROBE_PROMPTS = 24
PAIRS = 64


class Method(NamedTuple):
    """One row of the comparison."""

    name: str
    run: EvalRun
    strength: tuple[float, float]
    """Coefficients of the method that stand for +1 and -1."""
    kl: tuple[float, float]
    """95th percentile of KL to the base at those, nats."""


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown baseline before a model is loaded.

    Raises:
        PastoError: With the names that there are.
    """
    for name in names:
        if name not in BASELINES:
            raise PastoError(f"unknown baseline {name!r}", f"There are {', '.join(BASELINES)}.")


def compare(
    dial: Opened, names: Sequence[str], part: Benchmark, value: str, equal_kl: bool, watch: Watcher, provenance: dict[str, Any]
) -> list[Method]:
    """The dial and its baselines on one benchmark.

    Args:
        dial: The trained adapter.
        names: Of `BASELINES`.
        part: The items.
        value: The value measured.
        equal_kl: Scale each method so that it disturbs the base by 1 nat (95th percentile) at +1 and at -1; prompts cannot be
            scaled and stand as they are.
        watch: Told of progress.
        provenance: Recorded with each run.
    """
    recipe = Recipe.model_validate(dial.meta.recipe)
    spec = recipe.evaluation
    steerers: dict[str, Steerer] = {"adapter": dial.steerer}
    with watch.task("building baselines"):
        if names:
            pairs, _ = tokenise_pairs(_pairs_of(dial, recipe)[:PAIRS], dial.lm.chat)
            hidden = end_states(dial.lm, pairs, [], spec.node_budget).hidden
            depth = dial.lm.depth_index(recipe.subspace.depth)
            for name in names:
                personas = (dial.meta.personas[0], dial.meta.personas[1])
                steerers[name] = build_baseline(name, dial.lm, personas, hidden, dial.adapter, depth, recipe.training.seed)
        probe = make_probe(dial.lm, bundled.lines("sentiment_prompts.txt")[:PROBE_PROMPTS])
    found = []
    for name, steerer in steerers.items():
        up = down = 1.0
        if equal_kl and not isinstance(steerer, PromptSteerer):
            with watch.task(f"{name}: strength at 1 nat"):
                up, down = (equal_strength(dial.lm, steerer, probe, sign) for sign in (1.0, -1.0))
            steerer = Scaled(steerer, up, down)
        kl = (float("nan"), float("nan"))
        if not isinstance(steerer, PromptSteerer):
            kl = (disturbance(dial.lm, steerer, probe, 1.0), disturbance(dial.lm, steerer, probe, -1.0))
        if equal_kl and any(abs(k - 1) > 0.2 for k in kl):
            watch.warn(
                f"{name}: no coefficient up to {STRONGEST:g} disturbs this model by 1 nat; reached {kl[0]:.2f}, {kl[1]:.2f}"
            )
        facts = provenance | {
            "method": name,
            "equal_kl": equal_kl,
            "strength": [up, down],
            "kl_p95": [None if k != k else k for k in kl],
        }
        with watch.task(f"{name}: {len(part.items)} questions", len(part.items)) as advance:
            run = evaluate(
                dial.lm,
                steerer,
                part,
                value,
                (-1.0, 0.0, 1.0),
                spec.pmass_threshold,
                spec.node_budget,
                spec.seed,
                facts,
                advance,
            )
        found.append(Method(name, run, (up, down), kl))
    return found


def _pairs_of(dial: Opened, recipe: Recipe) -> list[Pair]:
    """The pairs that the dial was trained on, from its run's folder or made again from its recipe."""
    beside: Path = dial.folder.parent / "pairs.jsonl"
    return (read_pairs(beside) if beside.exists() else make_pairs(recipe.pairs)).pairs
