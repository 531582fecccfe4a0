"""The verbs of `pasto eval`: measure a dial, keep what was found, simulate steerers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import bundled, runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import NotWritten, write_text
from pasto_cli.base.provenance import now, versions
from pasto_cli.base.statistics import Spread
from pasto_cli.core.evaluation.base_answers import base_answers
from pasto_cli.core.evaluation.benchmarks import Benchmark, load_benchmark, subset
from pasto_cli.core.evaluation.benchmarks.item import plain
from pasto_cli.core.evaluation.details import with_details
from pasto_cli.core.evaluation.disturbance import (
    NeutralProbe,
    make_probe,
    measure_disturbance,
    summarise_disturbance,
)
from pasto_cli.core.evaluation.evaluator import (
    EvalSettings,
    evaluate,
    require_value,
    tokenise,
)
from pasto_cli.core.evaluation.oracles import OracleScore, score_oracles
from pasto_cli.core.evaluation.questions import Answers, TokenisedQuestion
from pasto_cli.core.evaluation.seeds import across_seeds, sentiment_across_seeds
from pasto_cli.core.evaluation.sentiment import score_texts
from pasto_cli.core.models import distributed
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import EvalRun, Evaluated, SentimentRun, dump
from pasto_cli.core.records.scores import Disturbance, LabelSign, key
from pasto_cli.core.steering.steerer import Steerer
from pasto_cli.workflows.dials import Dial, recipe_of
from pasto_cli.workflows.kept_results import SENTIMENT, between, fuller, read_evaluation
from pasto_cli.workflows.progress import Watcher

PROBE_PROMPTS = 24
"""Neutral prompts, held out from training, on which disturbance is measured."""
LOW_MEMORY = (
    "Lower evaluation.node_budget in the recipe, or load the base with --quantization 4bit."
)


class Wanted(NamedTuple):
    """What an evaluation asks of any dial with a recipe."""

    benchmark: Benchmark
    """Cut to size."""
    settings: EvalSettings
    limit: int | None
    """Dilemmas at most."""


class Plan(NamedTuple):
    """What an evaluation will ask, and how it will be scored."""

    benchmark: Benchmark
    """Cut to size."""
    settings: EvalSettings
    provenance: dict[str, Any]
    precision: str = "float32"
    """`evaluation.precision` of the recipe."""


class Asked(NamedTuple):
    """What all methods have in common on one benchmark."""

    questions: Sequence[TokenisedQuestion]
    base: Answers
    """At coefficient 0."""


class Measured(NamedTuple):
    """A dial on one benchmark."""

    found: Evaluated | SentimentRun
    path: Path | None
    """The file that holds every row; None for an adapter that is not in a run folder."""

    @property
    def run(self) -> EvalRun | SentimentRun:
        """What was measured, without what its rows show."""
        return self.found.run if isinstance(self.found, Evaluated) else self.found


def want(
    recipe: Recipe,
    *,
    benchmark: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    value: str | None = None,
    coefficients: Sequence[float] | None = None,
    label_sign: LabelSign = "own",
) -> Wanted:
    """Decide what an evaluation asks; what is not given comes from a recipe. Needs no model.

    Args:
        recipe: Of the dial to be measured.
        benchmark: Bundled name, `dailydilemmas`, or a benchmark file.
        data: Local folder with the DailyDilemmas files.
        limit: Dilemmas at most.
        value: The value whose labels score the rows; the only one of a benchmark that has one.
        coefficients: -1, 0 and +1 are added where they are missing.
        label_sign: `original` only to compare with published numbers.

    Raises:
        PastoError: If there is no such benchmark, or no row of it carries the value.
    """
    spec = recipe.evaluation
    # The recipe's limit is for the recipe's benchmark; another one is taken whole.
    if limit is None and benchmark in (None, spec.benchmark):
        limit = spec.limit
    whole = load_benchmark(benchmark or spec.benchmark, data)
    settings = EvalSettings(
        value=plain(value or only_value(whole) or spec.value),
        coefficients=coefficients or spec.coefficients,
        pmass_threshold=spec.pmass_threshold,
        node_budget=spec.node_budget,
        seed=spec.seed,
        label_sign=label_sign,
    )
    part = subset(whole, settings.value, limit, spec.seed)
    require_value(part, settings.value)
    return Wanted(part, settings, limit)


def plan_evaluation(dial: Dial, wanted: Wanted) -> Plan:
    """What a dial will be asked, and what will be written down about it."""
    spec = dial.recipe.evaluation
    with layer_precision(dial.lm, spec.precision) as low:
        facts = {"layers": "bfloat16" if low else str(dial.lm.dtype).removeprefix("torch.")}
    provenance = provenance_of(dial, spec.seed, wanted.limit) | facts
    return Plan(wanted.benchmark, wanted.settings, provenance, spec.precision)


def provenance_of(dial: Dial, bootstrap_seed: int, limit: int | None) -> dict[str, Any]:
    """Which dial was measured, on which base, by which versions, when."""
    return {
        "adapter": str(dial.folder),
        "ends": list(dial.ends),
        "pairs_sha256": dial.meta.pairs_sha256,
        "base": dial.meta.base.spec.source,
        "base_commit": dial.lm.commit,
        "quantization": dial.lm.spec.quantization,
        "created": now(),
        "versions": versions(),
        "training_seed": dial.meta.trained_with.training.seed,
        "bootstrap_seed": bootstrap_seed,
        "limit": limit,
    }


def only_value(benchmark: Benchmark) -> str | None:
    """The value of a benchmark that is about one, whatever the recipe calls its own."""
    values = {value for item in benchmark.items for value in item.labels}
    return values.pop() if len(values) == 1 else None


def evaluate_dial(dial: Dial, plan: Plan, watch: Watcher) -> Measured:
    """Run a benchmark with a dial, and measure what the dial disturbs."""
    with layer_precision(dial.lm, plan.precision):
        asked = ask_base(dial.lm, plan, watch)
        run = answer(dial.lm, dial.steerer, plan, asked, plan.benchmark.name, watch)
    with (
        layer_precision(dial.lm, plan.precision),
        watch.task(f"disturbance on {PROBE_PROMPTS} neutral prompts"),
    ):
        found = disturbances(
            dial, dial.steerer, neutral_probe(dial.lm), run.coefficients, plan.settings.seed
        )
    run = run.model_copy(update={"disturbance": found})
    return Measured(with_details(run), keep_evaluation(dial, run, watch))


def ask_base(lm: LoadedModel, plan: Plan, watch: Watcher) -> Asked:
    """A benchmark's questions, and what the base answers to them."""
    questions = tokenise(lm, plan.benchmark)
    label = f"{plan.benchmark.name}: the base model's answers"
    with enough_memory(LOW_MEMORY), watch.task(label, len(questions)) as advance:
        base = base_answers(lm, questions, plan.settings.node_budget, advance)
    return Asked(questions, base)


def answer(
    lm: LoadedModel, steerer: Steerer, plan: Plan, asked: Asked, name: str, watch: Watcher
) -> EvalRun:
    """A benchmark by one method; what it disturbs is not measured yet.

    Args:
        lm: The base model, with its layers in the plan's precision.
        steerer: The method.
        plan: Items and settings.
        asked: From `ask_base`.
        name: What the method is called while it runs.
        watch: Told of progress.
    """
    count = len(asked.questions)
    with enough_memory(LOW_MEMORY), watch.task(f"{name}: {count} questions", count) as advance:
        return evaluate(
            lm,
            steerer,
            plan.benchmark,
            plan.settings,
            provenance=plan.provenance,
            progress=advance,
            questions=asked.questions,
            base=asked.base,
        )


def neutral_probe(lm: LoadedModel) -> NeutralProbe:
    """Held-out neutral prompts with the base's own answers."""
    return make_probe(lm, bundled.lines("sentiment_prompts.txt")[:PROBE_PROMPTS])


def disturbances(
    dial: Dial, steerer: Steerer, probe: NeutralProbe, coefficients: Sequence[float], seed: int
) -> dict[str, Disturbance]:
    """Coefficient -> KL to the base and NLL of the neutral prompts, with intervals."""
    zero = measure_disturbance(dial.lm, steerer, probe, 0.0)
    found = {}
    for a in coefficients:
        reading = measure_disturbance(dial.lm, steerer, probe, a) if a else zero
        found[key(a)] = summarise_disturbance(reading, zero, seed)
    return found


def keep_evaluation(dial: Dial, run: EvalRun, watch: Watcher, method: str = "") -> Path | None:
    """Write an evaluation beside the run that it belongs to; None where that is not possible.

    What was measured of the coefficients of training, and of a part of a benchmark of which more is
    known, gets a name of its own.
    """
    sign = "" if run.label_sign == "own" else "-original-sign"
    name = f"{run.benchmark}{sign}{f'-{method}' if method else ''}{_raw(dial)}"
    folder = runs.run_of(dial.folder)
    known = None if folder is None else read_evaluation(folder / "eval" / f"{name}.json")
    if known is not None and between(known.provenance, dial.ends) and fuller(known, run):
        name += "-part"
    return keep(dial, f"{name}.json", dump(run), watch)


def _raw(dial: Dial) -> str:
    """What the name of a result has more where it is not of the calibrated dial."""
    return "" if dial.ends == dial.meta.ends else "-raw"


def keep(dial: Dial, name: str, text: str, watch: Watcher) -> Path | None:
    """Write a file into eval/ of the dial's run.

    None where there is no run folder, or it cannot be written: what was measured is shown all the
    same.
    """
    run = runs.run_of(dial.folder)
    # Every process has the same result; the first one writes it.
    if distributed.rank() > 0 or run is None:
        return None
    path = run / "eval" / name
    try:
        write_text(path, text)
    except NotWritten as error:
        watch.warn(f"{error.message}: what was measured is not kept")
        return None
    return path


def sentiment_coefficients(recipe: Recipe, coefficients: Sequence[float] | None) -> list[float]:
    """Where the sentiment benchmark measures; 0 is always there.

    Raises:
        PastoError: If that is all.
    """
    wanted = sorted({*map(float, coefficients or recipe.evaluation.coefficients), 0.0})
    if len(wanted) < 2:
        raise PastoError(
            "the sentiment benchmark needs two coefficients or more", "Write --coeffs=-1,0,1"
        )
    return wanted


def evaluate_sentiment(
    dial: Dial, watch: Watcher, coefficients: Sequence[float] | None, limit: int | None
) -> Measured:
    """Greedy answers to neutral open prompts at each coefficient, scored by sentiment."""
    from pasto_cli.core.steering.generation import generate_many

    spec = recipe_of(dial.meta, dial.folder).evaluation
    prompts = bundled.lines("sentiment_prompts.txt")[:limit]
    wanted = sentiment_coefficients(dial.recipe, coefficients)
    label = f"{SENTIMENT}: {len(prompts)} prompts at {len(wanted)} coefficients"
    with enough_memory(LOW_MEMORY), watch.task(label, len(prompts)) as advance:
        texts = generate_many(dial.lm, dial.steerer, prompts, wanted, progress=advance)
    run = score_texts(prompts, wanted, texts, spec.seed, provenance_of(dial, spec.seed, limit))
    return Measured(
        run, keep(dial, f"{SENTIMENT}{_raw(dial)}.json", run.model_dump_json(indent=1), watch)
    )


def across_runs(found: Sequence[Measured]) -> dict[str, Spread]:
    """What several dials have in common; empty for one, or where benchmarks are mixed.

    Raises:
        PastoError: If they were not measured on the same items and value.
    """
    if len(found) < 2:
        return {}
    dilemmas = [m.run for m in found if isinstance(m.run, EvalRun)]
    texts = [m.run for m in found if isinstance(m.run, SentimentRun)]
    if dilemmas and texts:
        return {}
    return across_seeds(dilemmas) if dilemmas else sentiment_across_seeds(texts)


def oracles(
    benchmark: str, data: str | None, value: str | None, label_sign: LabelSign
) -> tuple[Benchmark, str, int, list[OracleScore]]:
    """Simulated steerers on a benchmark: what its metric rewards. No model is loaded.

    Args:
        benchmark: See `want`.
        data: See `want`.
        value: None for the only one of the benchmark, or honesty.
        label_sign: See `want`.

    Returns:
        The benchmark, the value, its number of labelled rows, and the scores of each oracle.
    """
    whole = load_benchmark(benchmark, data)
    value = plain(value or only_value(whole) or "honesty")
    require_value(whole, value)
    labelled = sum(value in item.labels for item in whole.items)
    return whole, value, labelled, score_oracles(whole.items, value, label_sign)
