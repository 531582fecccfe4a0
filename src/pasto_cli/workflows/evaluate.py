"""The verbs of `pasto eval`: measure a dial, keep what was found, simulate steerers. No
printing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pasto_cli.base import bundled, runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text, writing
from pasto_cli.base.provenance import now, versions
from pasto_cli.core.evaluation.benchmarks import Benchmark, load_benchmark, subset
from pasto_cli.core.evaluation.disturbance import (
    NeutralProbe,
    make_probe,
    measure_disturbance,
    summarise_disturbance,
)
from pasto_cli.core.evaluation.evaluator import evaluate, require_value
from pasto_cli.core.evaluation.oracles import OracleScore, score_oracles
from pasto_cli.core.evaluation.sentiment import score_texts
from pasto_cli.core.models import distributed
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun, dump, key
from pasto_cli.core.steering.steerer import Steerer
from pasto_cli.workflows.dials import Dial
from pasto_cli.workflows.progress import Watcher

PROBE_PROMPTS = 24
"""Neutral prompts, held out from training, on which disturbance is measured."""
LOW_MEMORY = (
    "Lower evaluation.node_budget in the recipe, or load the base with --quantization 4bit."
)
SENTIMENT = "sentiment"


class Plan(NamedTuple):
    """What an evaluation will ask."""

    part: Benchmark
    value: str
    provenance: dict[str, Any]


def plan_evaluation(
    dial: Dial, benchmark: str | None, data: str | None, limit: int | None, value: str | None
) -> Plan:
    """The items, the value and the provenance of an evaluation; what is not given comes from the
    dial's recipe."""
    spec = Recipe.model_validate(dial.meta.recipe).evaluation
    value = value or spec.value
    # The recipe's limit is for the recipe's benchmark; another one is taken whole.
    limit = spec.limit if limit is None and benchmark in (None, spec.benchmark) else limit
    part = subset(load_benchmark(benchmark or spec.benchmark, data), value, limit, spec.seed)
    require_value(part, value)
    return Plan(part, value, _provenance(dial) | {"bootstrap_seed": spec.seed, "limit": limit})


def _provenance(dial: Dial) -> dict[str, Any]:
    return {
        "adapter": str(dial.folder),
        "pairs_sha256": dial.meta.pairs_sha256,
        "base": dial.meta.base.spec.source,
        "base_commit": dial.lm.commit,
        "quantization": dial.lm.spec.quantization,
        "created": now(),
        "versions": versions(),
        "training_seed": dial.meta.recipe["training"]["seed"],
    }


def evaluate_dial(
    dial: Dial,
    watch: Watcher,
    plan: Plan,
    coefficients: Sequence[float] | None,
    label_sign: Literal["own", "original"] = "own",
) -> tuple[EvalRun, Path | None]:
    """Run a benchmark with a dial, and measure what the dial disturbs.

    Returns:
        The evaluation, and the file it was written to (None for an adapter that is not in a run
        folder).
    """
    spec = Recipe.model_validate(dial.meta.recipe).evaluation
    part = plan.part
    with (
        enough_memory(LOW_MEMORY),
        watch.task(f"{part.name}: {len(part.items)} questions", len(part.items)) as advance,
    ):
        run = evaluate(
            dial.lm,
            dial.steerer,
            part,
            plan.value,
            coefficients or spec.coefficients,
            spec.pmass_threshold,
            spec.node_budget,
            spec.seed,
            plan.provenance,
            advance,
            label_sign,
        )
    with watch.task(f"disturbance on {PROBE_PROMPTS} neutral prompts"):
        found = disturbances(dial, dial.steerer, neutral_probe(dial), run.coefficients, spec.seed)
    run = run.model_copy(update={"disturbance": found})
    return run, keep_evaluation(dial, run)


def neutral_probe(dial: Dial) -> NeutralProbe:
    """Held-out neutral prompts with the base's own answers."""
    return make_probe(dial.lm, bundled.lines("sentiment_prompts.txt")[:PROBE_PROMPTS])


def disturbances(
    dial: Dial, steerer: Steerer, probe: NeutralProbe, coefficients: Sequence[float], seed: int
) -> dict[str, Any]:
    """Coefficient -> KL to the base and NLL of the neutral prompts, with intervals."""
    zero = measure_disturbance(dial.lm, steerer, probe, 0.0)
    found = {}
    for a in coefficients:
        reading = measure_disturbance(dial.lm, steerer, probe, a) if a else zero
        figures = summarise_disturbance(reading, zero, seed)
        found[key(a)] = {name: e._asdict() for name, e in figures._asdict().items()}
    return found


def keep_evaluation(dial: Dial, run: EvalRun, method: str = "") -> Path | None:
    """Write an evaluation beside the run that it belongs to; None where there is no run folder."""
    suffix = ("" if run.label_sign == "own" else "-original-sign") + (
        f"-{method}" if method else ""
    )
    return _keep(dial, f"{run.benchmark}{suffix}.json", dump(run))


def _keep(dial: Dial, name: str, text: str) -> Path | None:
    run = runs.run_of(dial.folder)
    if distributed.rank() > 0 or run is None:
        return None
    path = run / "eval" / name
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    return path


def evaluate_sentiment(
    dial: Dial, watch: Watcher, coefficients: Sequence[float] | None, limit: int | None
) -> tuple[SentimentRun, Path | None]:
    """Greedy answers to neutral open prompts at each coefficient, scored by sentiment.

    Returns:
        The result, and the file it was written to (None for an adapter that is not in a run
        folder).
    """
    from pasto_cli.core.steering.generation import generate_many

    spec = Recipe.model_validate(dial.meta.recipe).evaluation
    prompts = bundled.lines("sentiment_prompts.txt")[:limit]
    wanted = sorted({*map(float, coefficients or spec.coefficients), 0.0})
    if len(wanted) < 2:
        raise PastoError(
            "the sentiment benchmark needs two coefficients or more", "Write --coeffs=-1,0,1"
        )
    with (
        enough_memory(LOW_MEMORY),
        watch.task(
            f"{SENTIMENT}: {len(prompts)} prompts at {len(wanted)} coefficients", len(prompts)
        ) as advance,
    ):
        texts = generate_many(dial.lm, dial.steerer, prompts, wanted, progress=advance)
    run = score_texts(
        prompts,
        wanted,
        texts,
        spec.seed,
        _provenance(dial) | {"bootstrap_seed": spec.seed, "limit": limit},
    )
    return run, _keep(dial, f"{SENTIMENT}.json", run.model_dump_json(indent=1))


def oracles(
    benchmark: str, data: str | None, value: str, label_sign: str
) -> tuple[Benchmark, int, list[OracleScore]]:
    """Simulated steerers on a benchmark: what its metric rewards. No model is loaded.

    Returns:
        The benchmark, its number of rows labelled for the value, and a score for each oracle.
    """
    whole = load_benchmark(benchmark, data)
    require_value(whole, value)
    labelled = sum(value in item.labels for item in whole.items)
    return whole, labelled, score_oracles(whole.items, value, label_sign)
