"""A dial beside its baselines: the same items, the same scores, one table. No printing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.baselines import BASELINES, BaselineInputs, build_baseline
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    NeutralProbe,
    coefficient_at_budget,
)
from pasto_cli.core.evaluation.evaluator import NEEDED
from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.evaluation.scores import selectivity_difference, slope_difference
from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.models.chat import tokenise_pairs
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.steering.steerer import Mix, Scaled, Steerer
from pasto_cli.workflows.dials import Dial, pairs_of, recipe_of
from pasto_cli.workflows.evaluate import (
    Asked,
    Plan,
    answer,
    ask_base,
    disturbances,
    keep_evaluation,
    neutral_probe,
)
from pasto_cli.workflows.progress import Watcher

PAIRS = 64
"""Training pairs that the baselines' directions are made from."""
ADAPTER = "adapter"
"""What the dial is called among the methods."""
TOGETHER = "together"
"""What several dials are called that are turned at once."""


class Method(NamedTuple):
    """One row of the comparison."""

    name: str
    run: EvalRun
    coefficients: tuple[float, float]
    """The sizes of the method's own coefficients that stand for +1 and -1."""


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown baseline before a model is loaded.

    Raises:
        PastoError: With the names that there are.
    """
    for name in names:
        if name in (ADAPTER, TOGETHER):
            raise PastoError(
                f"--baseline {name} would be shown under the name of another method",
                f"Write ./{name}, if the folder of a run is meant.",
            )
        if name not in BASELINES and not _is_run(name):
            raise PastoError(
                f"unknown baseline {name!r}",
                f"There are {', '.join(BASELINES)}, and the folder of another run.",
            )


def _is_run(name: str) -> bool:
    """Whether a baseline is another adapter on this machine."""
    return Path(name).is_dir() and runs.adapter_folder(name) is not None


def compare(
    dial: Dial,
    names: Sequence[str],
    plan: Plan,
    equal_kl: bool,
    watch: Watcher,
    known: Sequence[Method] = (),
    others: Sequence[Path] = (),
) -> list[Method]:
    """The dial and its baselines on one benchmark; each result is kept beside the run.

    Args:
        dial: The trained adapter.
        names: Some of `BASELINES`.
        plan: Items and value; they are put into tokens once, but for methods that work by words.
        equal_kl: Scale each method so that it disturbs the base by 1 nat (95th percentile) at +1
            and at -1; prompts cannot be scaled and stand as they are.
        watch: Told of progress.
        known: The methods of another dial on the same items: what does not depend on the dial
            (`same_for_both`) is taken from there.
        others: Folders of adapters of the same base. Turned together with this one, each at its
            share of the coefficient, they are one more method.
    """
    plan = plan._replace(settings=plan.settings._replace(coefficients=NEEDED))
    with layer_precision(dial.lm, plan.precision):
        shared = {m.name: m for m in known}
        return _compare(dial, names, plan, equal_kl, watch, shared, others)


def require_one_base(metas: Sequence[Meta]) -> None:
    """Refuse dials that cannot be turned together.

    Raises:
        PastoError: If there is one alone, one is named twice, or they were made for different
            bases, or for one under different system prompts or quantisations.
    """
    if len(metas) < 2:
        raise PastoError("--together needs several adapters", "Name two runs or more.")
    if len({meta.tensors_sha256 or meta.created for meta in metas}) < len(metas):
        raise PastoError(
            "--together names one adapter twice: it would count twice", "Name each once."
        )
    specs = [meta.base.spec for meta in metas]
    # The same weights under two names are one base, other weights under one name are not.
    commits = [meta.base.commit or "" for meta in metas]
    sources = [spec.source for spec in specs]
    if all(commits):
        shown = [f"{source} ({commit})" for source, commit in zip(sources, commits, strict=True)]
        _require_one("base", shown, commits)
    else:
        _require_one("base", sources)
    _require_one("system prompt", [repr(spec.system) for spec in specs])
    _require_one("quantisation of the base", [spec.quantization for spec in specs])


def _require_one(what: str, shown: Sequence[str], values: Sequence[str] | None = None) -> None:
    if len(set(values or shown)) > 1:
        raise PastoError(
            f"--together turns adapters of one {what}, and these are of "
            f"{' and '.join(dict.fromkeys(shown))}",
            "Name adapters that were trained alike in this.",
        )


def same_for_both(methods: Sequence[Method], first: Dial, second: Dial) -> list[Method]:
    """Those methods that another dial would give again: made from the same pairs and base."""
    one, two = first.meta, second.meta
    alike = (one.pairs_sha256, one.base, one.personas) == (two.pairs_sha256, two.base, two.personas)
    own = (ADAPTER, "random-rotation")  # made from the dial itself
    return [m for m in methods if m.name not in own] if alike else []


def _compare(
    dial: Dial,
    names: Sequence[str],
    plan: Plan,
    equal_kl: bool,
    watch: Watcher,
    known: Mapping[str, Method],
    others: Sequence[Path],
) -> list[Method]:
    new = [name for name in names if name not in known]
    steerers: dict[str, Steerer] = {ADAPTER: dial.steerer}
    each = [dial, *(dial.beside(str(folder)) for folder in others)]
    if others:
        steerers[TOGETHER] = Mix([(one.steerer, 1 / len(each)) for one in each])
    if new:
        with watch.task(f"building baselines: {', '.join(new)}"):
            steerers |= _baselines(dial, new)
    with watch.task("the base model's own answers to neutral prompts"):
        probe = neutral_probe(dial.lm)
    asked = ask_base(dial.lm, plan, watch)
    methods: list[Method] = []
    for name, steerer in steerers.items():
        sizes = (1.0, 1.0)
        if equal_kl and steerer.prompt_prefix(0.0) is None:
            sizes = _equal_sizes(dial, name, steerer, probe, watch)
            steerer = Scaled(steerer, *sizes)
        facts: dict[str, Any] = {
            "method": name,
            "equal_kl": equal_kl,
            "coefficients": list(sizes),
        }
        if name == TOGETHER:
            facts["together"] = [_member(one, len(each)) for one in each]
        own = plan._replace(provenance=plan.provenance | facts)
        run = _measure(dial, steerer, own, asked, probe, watch)
        if methods:
            run = _with_differences(run, methods[0].run, plan.settings.seed)
        file = _name_of_run(name) if _is_run(name) else name
        keep_evaluation(dial, run, watch, file + ("-equal-kl" if equal_kl else "-compared"))
        methods.append(Method(name, run, sizes))
    for name in names:
        if name in known:
            run = _with_differences(known[name].run, methods[0].run, plan.settings.seed)
            methods.append(known[name]._replace(run=run))
    order = [ADAPTER, TOGETHER, *dict.fromkeys(names)]
    return sorted(methods, key=lambda method: order.index(method.name))


def _member(dial: Dial, count: int) -> dict[str, Any]:
    """What a result says of one of several dials that were turned together."""
    return {
        "adapter": str(dial.folder),
        "tensors_sha256": dial.meta.tensors_sha256,
        "training_seed": dial.meta.trained_with.training.seed,
        "ends": list(dial.ends),
        "share": 1 / count,
    }


def _name_of_run(folder: str) -> str:
    """What a result of another run is called: the run's name, also for its adapter/ folder."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "adapter" else path.name


def _measure(
    dial: Dial,
    steerer: Steerer,
    plan: Plan,
    asked: Asked,
    probe: NeutralProbe,
    watch: Watcher,
) -> EvalRun:
    """One method on the benchmark, and what it disturbs."""
    run = answer(dial.lm, steerer, plan, asked, plan.provenance["method"], watch)
    found = disturbances(dial, steerer, probe, NEEDED, plan.settings.seed)
    return run.model_copy(update={"disturbance": found})


def _with_differences(run: EvalRun, adapter: EvalRun, seed: int) -> EvalRun:
    """A baseline's run with its slope and selectivity minus the adapter's."""
    one, other = (Table(r.rows, r.value, r.coefficients, r.pmass_threshold) for r in (run, adapter))
    differences = {
        "slope_minus_adapter": slope_difference(one, other, seed),
        "selectivity_minus_adapter": selectivity_difference(one, other, seed),
    }
    return run.model_copy(update={"scores": run.scores.model_copy(update=differences)})


def _baselines(dial: Dial, names: Sequence[str]) -> dict[str, Steerer]:
    found: dict[str, Steerer] = {name: dial.beside(name).steerer for name in names if _is_run(name)}
    built = [name for name in names if name not in found]
    return found | (_built(dial, built) if built else {})


def _built(dial: Dial, names: Sequence[str]) -> dict[str, Steerer]:
    recipe = recipe_of(dial.meta, dial.folder)
    pairs, _ = tokenise_pairs(pairs_of(dial).pairs[:PAIRS], dial.lm.chat)
    inputs = BaselineInputs(
        personas=(dial.meta.personas[0], dial.meta.personas[1]),
        states=collect_activations(dial.lm, pairs, [], recipe.evaluation.node_budget),
        adapter=dial.adapter,
        depth=dial.lm.depth_index(recipe.subspace.depth),
        seed=recipe.training.seed,
    )
    return {name: build_baseline(name, dial.lm, inputs) for name in dict.fromkeys(names)}


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
