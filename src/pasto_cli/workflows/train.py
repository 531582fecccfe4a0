"""`pasto train`: from a recipe to a certified adapter, without printing.

    pairs -> base model, tokens -> elicitation check -> adapter, loss -> training -> certificate

`Watcher` is told what happens. Everything lies in the folder of the run; a run that was killed goes
on from there (`resume_run`), and the adapter in it is always one that loads.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import NotWritten, write_text
from pasto_cli.base.limits import LARGEST_SEED
from pasto_cli.base.provenance import now, versions
from pasto_cli.base.shell import pasto
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import check_benchmark
from pasto_cli.core.evaluation.certificate import certify, measure_persona_llr
from pasto_cli.core.evaluation.disturbance import measure_specificity
from pasto_cli.core.evaluation.opposites import measure_opposites
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.pairs.anchors import AnchorSplit, read_anchors, write_anchors
from pasto_cli.core.pairs.answers import AnswerSplit
from pasto_cli.core.pairs.pairs import PairSet, make_pairs, read_pairs, write_pairs
from pasto_cli.core.recipe.load import dump_recipe, load_stored_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import FORMAT_VERSION, BaseInfo, Calibration, Certificate, Meta
from pasto_cli.core.records.training import TrainingRecord, TrainResult
from pasto_cli.core.report.card import card
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.steerer import AdapterSteerer, Scaled, Steerer
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.not_finite import NotFinite
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import RunRecorder, write_failed_batch
from pasto_cli.core.training.trainer import TrainingSplit, train
from pasto_cli.workflows.answers import recipe_questions, run_answers
from pasto_cli.workflows.calibrate import ends_of
from pasto_cli.workflows.dials import open_model
from pasto_cli.workflows.layers import describe_model
from pasto_cli.workflows.plan import Marks, compare_with_plan
from pasto_cli.workflows.prepare import (
    Tokens,
    check_elicitation,
    prepare_or_restore,
    recipe_anchors,
    tokenise_recipe,
)
from pasto_cli.workflows.progress import Watcher, mark_latest
from pasto_cli.workflows.screen import screen_for_training, write_screen


class Trained(NamedTuple):
    """What a training left."""

    folder: Path
    result: TrainResult
    certificate: Certificate | None
    calibration: Calibration | None


def with_seeds(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe, or `count` of it that differ in name and training.seed.

    The seed decides the split, the order of the pairs and the initial weights.
    """
    if count == 1:
        return [recipe]
    first = recipe.training.seed
    if first + count - 1 > LARGEST_SEED:
        raise PastoError(
            f"{count} seeds from {first} on go beyond {LARGEST_SEED}, the largest seed",
            "Lower training.seed.",
        )
    return [
        recipe.model_copy(
            update={
                "name": f"{recipe.name[:54]}-seed{seed}",
                "training": recipe.training.model_copy(update={"seed": seed}),
            }
        )
        for seed in range(first, first + count)
    ]


def train_recipe(
    recipe: Recipe, watch: Watcher, root: Path = runs.RUNS, *, force: bool = False
) -> Trained:
    """Screen, pairs, elicitation check, training, ends, certificate.

    Better adapters are saved on the way.

    Args:
        recipe: The whole recipe; the run keeps it with the templates that its screen kept.
        watch: Told what happens.
        root: Folder that holds the runs.
        force: Train although no template passes the screen.

    Raises:
        PastoError: For anything a user can mend; what was trained until then is on disk.
    """
    check_benchmark(recipe.evaluation.benchmark)
    pair_set = make_pairs(recipe.pairs)
    for note in pair_set.notes:
        watch.note(note)
    anchors = recipe_anchors(recipe)
    recipe_questions(recipe)  # what is wrong with them is said before a model is loaded
    lm = open_model(recipe.model, watch)
    describe_model(lm, recipe.adapter, watch)
    screen = None
    if recipe.pairs.screen != "off" and recipe.pairs.file is None:
        with layer_precision(lm, recipe.training.precision):
            pairs, screen = screen_for_training(recipe.pairs, lm, watch, force=force)
        recipe = recipe.model_copy(update={"pairs": pairs})
        pair_set = make_pairs(pairs)
    folder = runs.new_run(recipe.name, root)
    with runs.removed_unless(folder, lambda: checkpoint.begun(folder)):
        write_pairs(pair_set.pairs, folder / "pairs.jsonl")
        if anchors is not None:
            write_anchors(anchors, folder / runs.ANCHORS)
        if screen is not None:
            write_screen(screen, folder)
        # Last: where it stands, the run can be begun again from its folder alone.
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        return _train(recipe, pair_set, anchors, folder, watch, lm)


def resume_run(run: Path, watch: Watcher) -> Trained:
    """Go on with a run that was killed or interrupted: it ends as it would have ended.

    Args:
        run: Its folder, with recipe.yaml and pairs.jsonl; one that was killed before training began
            starts at the beginning.
        watch: Told what happens.

    Raises:
        PastoError: If the run is finished, incomplete or being trained by another process.
    """
    run = runs.followed(run).resolve()
    if not (run / "recipe.yaml").is_file():
        begun = (run / "pairs.jsonl").is_file()  # written first, the recipe last
        raise PastoError(
            f"{run}: recipe.yaml is missing: "
            + (
                "its training had not begun, or the file was taken away" if begun else "no run here"
            ),
            "Put it back, or begin again: pasto train RECIPE."
            if begun
            else "Give the folder of a run, such as runs/TIME-NAME.",
        )
    recipe = load_stored_recipe(run / "recipe.yaml")
    _refuse_finished(run, watch)
    anchors = read_anchors(run / runs.ANCHORS) if recipe.losses.anchor is not None else None
    pair_set = read_pairs(run / "pairs.jsonl")
    lm = open_model(recipe.model, watch)
    describe_model(lm, recipe.adapter, watch)
    return _train(recipe, pair_set, anchors, run, watch, lm)


def _refuse_finished(run: Path, watch: Watcher) -> None:
    if runs.holds_adapter(run / "adapter") and not checkpoint.begun(run):
        # It may have been killed just before that, or while its checkpoint was deleted.
        mark_latest(run, watch)
        checkpoint.remove(run)
        raise PastoError(
            f"{run} is finished: there is nothing to resume", f"Measure it: {pasto('eval', run)}"
        )


def _train(
    recipe: Recipe,
    pair_set: PairSet,
    anchors: AnchorSplit | None,
    folder: Path,
    watch: Watcher,
    lm: LoadedModel,
) -> Trained:
    """From loaded pairs to the certificate, in a run's folder."""
    tokens = tokenise_recipe(pair_set, recipe, lm, watch)
    marks = Marks(lm)
    with checkpoint.held(folder), _says_how_to_go_on(folder):
        # Another process may have finished it while this one waited.
        _refuse_finished(folder, watch)
        snapshot = checkpoint.load_state(folder)
        if snapshot is None:
            check_elicitation(lm, pair_set, tokens, recipe, watch)
        else:
            state = snapshot.state
            watch.note(f"going on after step {state.step} of {state.total}")
        answers = run_answers(recipe, pair_set, lm, folder, watch, snapshot is not None)
        adapter, objective = prepare_or_restore(lm, tokens, recipe, folder, watch, anchors, answers)
        marks.reached("decomposition")
        base = describe_base(lm, adapter)
        run = _Run(lm, adapter, objective, recipe, pair_set, anchors, answers, tokens, folder, base)
        result = run.optimise(snapshot, watch)
        marks.reached("step")
        if result.interrupted:
            _report_interruption(run, result, watch)
            return Trained(folder, result, None, None)
        # Uncertified first: making the certificate takes time, and may fail or be killed.
        run.save(result.record())
        calibration = run.calibrate(watch)
        certificate = run.certify(calibration, watch)
        run.save(result.record(), certificate, calibration)
        marks.reached("evaluation")
        mark_latest(folder, watch)
        checkpoint.retire(folder)
    checkpoint.remove(folder)
    compare_with_plan(recipe, lm, tokens, marks, folder, watch)
    return Trained(folder, result, certificate, calibration)


@contextmanager
def _says_how_to_go_on(folder: Path) -> Generator[None, None, None]:
    """Name the next step of a training that the disk ended."""
    try:
        yield
    except NotWritten as error:
        if checkpoint.begun(folder):
            again = pasto("train", "--resume", folder)
            error.hint += f" Nothing is lost but the step in progress; then: {again}"
        raise


def _report_interruption(run: "_Run", result: TrainResult, watch: Watcher) -> None:
    """Save what there is after Ctrl-C, and say how to go on."""
    again = f"go on with: {pasto('train', '--resume', run.folder)}"
    if not result.steps:
        watch.warn(f"interrupted before the first step: there is no adapter; {again}")
        return
    run.save(result.record())
    watch.warn(
        f"interrupted after {result.steps} steps: {run.folder}/adapter holds the best weights so "
        f"far, uncertified"
    )
    watch.note(again)


@dataclass(frozen=True)
class _Run:
    """A training in its folder: what is trained, on what, and what is said of it."""

    lm: LoadedModel
    adapter: Adapter
    objective: Objective
    recipe: Recipe
    pair_set: PairSet
    anchors: AnchorSplit | None
    answers: AnswerSplit | None
    tokens: Tokens
    folder: Path
    base: BaseInfo
    """The base in pasto.json; made once: it holds hashes of weights that do not change."""

    def optimise(self, resume_from: checkpoint.Snapshot | None, watch: Watcher) -> TrainResult:
        """The training itself; its history, checkpoints and best adapter so far are on disk."""
        spec = self.recipe.training
        split = TrainingSplit(self.tokens.train, self.tokens.validation)
        with (
            enough_memory(
                "Lower training.batch_size, raise training.accumulation, or set "
                "model.quantization: 4bit."
            ),
            watch.training() as show,
            RunRecorder(
                self.folder, self.save, show=show, warn=watch.warn, resume_from=resume_from
            ) as recorder,
            layer_precision(self.lm, spec.precision) as low,
        ):
            if low:
                watch.note(
                    "layers run in bfloat16 during training (training.precision: float32 switches "
                    "it off)"
                )
            try:
                return train(
                    self.objective,
                    self.adapter,
                    split,
                    spec,
                    recorder,
                    resume_from,
                    self.recipe.adapter,
                )
            except NotFinite as error:
                decode = self.lm.tokenizer.decode
                path = write_failed_batch(self.folder, error.message, error.batch, decode)
                error.hint += f" The batch: {path}"
                raise

    def save(
        self,
        training: TrainingRecord,
        certificate: Certificate | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Replace the run's adapter/ by the adapter as it is now."""
        meta = self._describe(training, certificate, calibration)
        text = card(meta, [])
        store.save(self.folder / "adapter", self.adapter, meta, text)

    def calibrate(self, watch: Watcher) -> Calibration | None:
        """What +1 and -1 stand for; None where the recipe leaves them as trained, or as a warning.

        A dial that cannot disturb as much as it may is whole all the same.
        """
        spec = self.recipe.calibration
        if spec is None:
            return None
        try:
            return ends_of(self.lm, self.adapter, spec, self.recipe, watch).calibration
        except PastoError as error:
            watch.warn(
                f"{error.message}: the dial stands without ends, at the coefficients of training; "
                f"ends for another budget: {pasto('calibrate', self.folder)} --kl ..."
            )
            return None

    def certify(self, calibration: Calibration | None, watch: Watcher) -> Certificate:
        """Strength at both ends on held-out suffixes under held-out neutral prompts."""
        spec, tokens = self.recipe.training, self.tokens
        steerer: Steerer = AdapterSteerer(self.adapter, self.lm)
        if calibration is not None:
            steerer = Scaled(steerer, *calibration.ends)
        label = "certificate: strength on held-out openings"
        with watch.task(label, len(tokens.certificate)) as advance:
            llr = measure_persona_llr(
                self.lm,
                steerer,
                tokens.certificate,
                [1.0, -1.0],
                spec.node_budget,
                advance,
            )
        at_ends = calibration is not None
        certificate = certify(llr, tokens.num_prompts, spec.seed, at_ends=at_ends)
        return Certificate(**(dict(certificate) | self._specificity(steerer, watch)))

    def _specificity(self, steerer: Steerer, watch: Watcher) -> dict[str, Any]:
        """Fields of the certificate about held-out anchors, as far as there are any."""
        found: dict[str, Any] = {}
        if self.anchors is None or self.recipe.losses.anchor is None:
            return found
        spec, tokens = self.recipe.training, self.recipe.losses.anchor.tokens
        both_ways = [anchor for anchor in self.anchors.held_out if anchor.opposite]
        one_way = [anchor for anchor in self.anchors.held_out if not anchor.opposite]
        limits = {"budget": spec.node_budget, "seed": spec.seed}
        if one_way:
            with watch.task(f"specificity: {len(one_way)} held-out anchors"):
                found["specificity"] = measure_specificity(
                    self.lm, steerer, one_way, tokens=tokens, **limits
                )
        if both_ways:
            with watch.task(f"both answers: {len(both_ways)} held-out questions"):
                found["opposites"] = measure_opposites(self.lm, steerer, both_ways, **limits)
        return found

    def _describe(
        self,
        training: TrainingRecord,
        certificate: Certificate | None,
        calibration: Calibration | None,
    ) -> Meta:
        """What pasto.json says of the adapter as it is now."""
        first, spec = self.pair_set.pairs[0], self.recipe.adapter
        return Meta(
            format_version=FORMAT_VERSION,
            created=now(),
            base=self.base,
            bound=spec.bound if spec.rotates else None,
            max_angle=spec.max_angle if spec.rotates else None,
            kind=spec.kind,
            largest_angle=self.adapter.angle(),
            recipe=self.recipe.model_dump(mode="json"),
            anchors_sha256=self.anchors.digest if self.anchors is not None else None,
            answers_sha256=self.answers.digest if self.answers is not None else None,
            pairs_sha256=self.pair_set.digest,
            personas=[first.chosen, first.rejected],
            training=training,
            certificate=certificate,
            calibration=calibration,
            num_pairs=self.tokens.counts,
            reply_start=self.lm.chat.start.note,
            reference=reference_logits(self.lm, self.adapter),
            versions=versions(),
        )
