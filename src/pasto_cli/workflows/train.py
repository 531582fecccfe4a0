"""`pasto train`: from a recipe to a certified adapter, without printing. `Watcher` is told what
happens."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text, writing
from pasto_cli.base.provenance import now, versions
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import check_benchmark
from pasto_cli.core.evaluation.certificate import certify, measure_likeness
from pasto_cli.core.models.devices import training_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.pairs.pairs import PairSet, make_pairs, read_pairs, write_pairs
from pasto_cli.core.recipe.load import dump_recipe, load_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import FORMAT_VERSION, Certificate, Meta
from pasto_cli.core.records.training import Step, TrainResult
from pasto_cli.core.report.card import card
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.trainer import Hooks, NotFinite, train
from pasto_cli.workflows.dials import open_model
from pasto_cli.workflows.prepare import (
    Tokens,
    _check_elicitation,
    _objective,
    prepare,
    tokenise_recipe,
)
from pasto_cli.workflows.progress import Watcher


class Trained(NamedTuple):
    """What a training left."""

    folder: Path
    result: TrainResult
    certificate: Certificate | None


def with_seeds(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe, or `count` recipes of it that differ in training.seed (split, order of pairs,
    initial weights) and name."""
    if count == 1:
        return [recipe]
    first = recipe.training.seed
    return [
        recipe.model_copy(
            update={
                "name": f"{recipe.name[:54]}-seed{seed}",
                "training": recipe.training.model_copy(update={"seed": seed}),
            }
        )
        for seed in range(first, first + count)
    ]


def train_recipe(recipe: Recipe, watch: Watcher, root: Path = runs.RUNS) -> Trained:
    """Pairs, elicitation check, training, certificate; the adapter is saved whenever it gets
    better.

    Raises:
        PastoError: For anything a user can mend; what was trained until then is on disk.
    """
    check_benchmark(recipe.evaluation.benchmark)
    pair_set = make_pairs(recipe.pairs)
    folder = runs.new_run(recipe.name, root)
    with runs.removed_unless(folder, lambda: checkpoint.begun(folder)):
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_pairs(pair_set.pairs, folder / "pairs.jsonl")
        return _train(recipe, pair_set, folder, watch)


def resume_run(run: Path, watch: Watcher) -> Trained:
    """Go on with a run that was killed or interrupted: it ends with the adapter that it would have
    had.

    Args:
        run: Its folder, with recipe.yaml and pairs.jsonl; one that was killed before training began
            starts at the beginning.
        watch: Told what happens.

    Raises:
        PastoError: If the run is finished, incomplete or being trained by another process.
    """
    run = run.resolve()
    if not (run / "recipe.yaml").is_file():
        raise PastoError(
            f"{run}: no run here (recipe.yaml is missing)",
            "Give the folder of a run, such as runs/TIME-NAME.",
        )
    recipe = load_recipe(run / "recipe.yaml", [])
    _refuse_finished(run)
    return _train(recipe, read_pairs(run / "pairs.jsonl"), run, watch)


def _refuse_finished(run: Path) -> None:
    if (run / "adapter" / store.META).exists() and not checkpoint.begun(run):
        runs.mark_latest(run)  # it may have been killed just before that
        raise PastoError(
            f"{run} is finished: there is nothing to resume", f"Measure it: pasto eval {run}"
        )


def _train(recipe: Recipe, pair_set: PairSet, folder: Path, watch: Watcher) -> Trained:
    """From loaded pairs to the certificate, in a run's folder."""
    lm = open_model(recipe.model, watch)
    tokens = tokenise_recipe(pair_set, recipe, lm, watch)
    with checkpoint.held(folder):
        _refuse_finished(folder)
        before = checkpoint.load_state(folder)
        if before is None:
            _check_elicitation(lm, pair_set, tokens, recipe, watch)
        else:
            watch.note(f"going on after step {before.facts['step']} of {before.facts['total']}")
        adapter, objective = _begin(lm, tokens, recipe, folder, watch)
        describe = _describer(lm, adapter, recipe, pair_set, tokens)

        def save(facts: dict[str, Any], certificate: Certificate | None) -> None:
            meta = describe(facts, certificate)
            store.save(folder / "adapter", adapter, meta, card(meta, []))

        result = _optimise(lm, adapter, objective, tokens, recipe, folder, watch, before, save)
        if result.interrupted:
            again = f"go on with: pasto train --resume {folder}"
            if result.steps:
                save(result._asdict(), None)
                watch.warn(
                    f"interrupted after {result.steps} steps: {folder}/adapter holds the best "
                    f"weights so far, uncertified"
                )
                watch.note(again)
            else:
                watch.warn(f"interrupted before the first step: there is no adapter; {again}")
            return Trained(folder, result, None)
        facts = result._asdict()
        save(facts, None)
        certificate = _certify(lm, adapter, tokens, recipe, watch)
        save(facts, certificate)
        runs.mark_latest(folder)
        checkpoint.retire(folder)
    checkpoint.remove(folder)
    return Trained(folder, result, certificate)


def _begin(
    lm: LoadedModel, tokens: Tokens, recipe: Recipe, folder: Path, watch: Watcher
) -> tuple[Adapter, Objective]:
    """A fresh adapter and the loss, from the run's checkpoint where there is one."""
    kept = checkpoint.load_start(folder, recipe.adapter)
    if kept is None:
        with training_precision(lm, recipe.training.precision):
            adapter, objective = prepare(lm, tokens, recipe, watch)
        checkpoint.save_start(folder, adapter, objective.basis)
        return adapter, objective
    return kept[0].to(lm.device), _objective(lm, kept[1], recipe)


def _optimise(
    lm: LoadedModel,
    adapter: Adapter,
    objective: Objective,
    tokens: Tokens,
    recipe: Recipe,
    folder: Path,
    watch: Watcher,
    before: checkpoint.Snapshot | None,
    save: Callable[[dict[str, Any], Certificate | None], None],
) -> TrainResult:
    """The training itself, with history.jsonl, checkpoints and the best adapter so far kept on
    disk."""
    path = folder / "history.jsonl"
    so_far: dict[str, Any] = {"steps": 0, "best_epoch": 0, "best_loss": None, "interrupted": True}
    if before:
        so_far.update(before.facts["so_far"])

    def keep(snapshot: checkpoint.Snapshot) -> None:
        facts = snapshot.facts | {"so_far": so_far, "history_bytes": path.stat().st_size}
        checkpoint.save_state(folder, snapshot._replace(facts=facts))

    with (
        enough_memory(
            "Lower training.batch_size, raise training.accumulation, or set model.quantization: "
            "4bit."
        ),
        _history(path, so_far, before.facts["history_bytes"] if before else 0, watch) as report,
        training_precision(lm, recipe.training.precision) as low,
    ):
        if low:
            watch.note(
                "layers run in bfloat16 during training (training.precision: float32 switches it "
                "off)"
            )
        hooks = Hooks(report, lambda: save(so_far, None), keep, watch.warn)
        try:
            return train(
                objective, adapter, tokens.train, tokens.validation, recipe.training, hooks, before
            )
        except NotFinite as error:
            rows = [
                {
                    "chosen": lm.tokenizer.decode(p.chosen),
                    "rejected": lm.tokenizer.decode(p.rejected),
                    "neutral": lm.tokenizer.decode(p.neutral),
                }
                for p in error.batch
            ]
            write_text(
                folder / "failed_batch.json",
                json.dumps({"problem": error.message, "pairs": rows}, indent=1) + "\n",
            )
            error.hint += f" The batch: {folder}/failed_batch.json"
            raise


def _describer(
    lm: LoadedModel, adapter: Adapter, recipe: Recipe, pair_set: PairSet, tokens: Tokens
) -> Callable[[dict[str, Any], Certificate | None], Meta]:
    base = describe_base(lm, adapter)  # the base does not change: hash it once
    first = pair_set.pairs[0]

    def describe(training: dict[str, Any], certificate: Certificate | None) -> Meta:
        return Meta(
            format_version=FORMAT_VERSION,
            created=now(),
            base=base,
            bound=recipe.adapter.bound,
            max_angle=recipe.adapter.max_angle,
            largest_angle=adapter.angle(),
            recipe=recipe.model_dump(mode="json"),
            pairs_sha256=pair_set.digest,
            personas=[first.chosen, first.rejected],
            training=training,
            certificate=certificate,
            num_pairs={
                name: len(getattr(tokens, name)) for name in ("train", "validation", "certificate")
            },
            reference=reference_logits(lm, adapter),
            versions=versions(),
        )

    return describe


@contextmanager
def _history(
    path: Path, so_far: dict[str, Any], size: int, watch: Watcher
) -> Iterator[Callable[[Step], None]]:
    """history.jsonl, one line a step after its first `size` bytes, and the live view; `so_far` is
    what an early save says."""
    with writing(path), path.open("a", encoding="utf-8") as history, watch.training() as show:
        history.truncate(size)

        def report(step: Step) -> None:
            with writing(path):
                history.write(json.dumps(step.record()) + "\n")
                history.flush()
            if step.validation and (so_far["best_loss"] is None or step.loss < so_far["best_loss"]):
                so_far.update(best_epoch=step.epoch, best_loss=step.loss)
            so_far.update(steps=step.step)
            show(step)

        yield report


def _certify(
    lm: LoadedModel, adapter: Adapter, tokens: Tokens, recipe: Recipe, watch: Watcher
) -> Certificate:
    with watch.task(
        "certificate: strength on held-out openings", len(tokens.certificate)
    ) as advance:
        likeness = measure_likeness(
            lm,
            AdapterSteerer(adapter, lm),
            tokens.certificate,
            [1.0, -1.0],
            recipe.training.node_budget,
            advance,
        )
    return certify(likeness, tokens.num_prompts, recipe.training.seed)
