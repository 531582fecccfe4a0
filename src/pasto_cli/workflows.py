"""The verbs: what each command does, without printing. `Watcher` is told what happens."""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError
from torch import Tensor

from pasto_cli import runs
from pasto_cli.core import artifact, checkpoint, parallel, subspaces
from pasto_cli.core.adapter import Adapter, keep
from pasto_cli.core.calibration import end_states
from pasto_cli.core.certificate import Certificate, certify, measure_likeness
from pasto_cli.core.chat import TokenPair, require_pairs, tokenise_pairs
from pasto_cli.core.decompositions import decompose_writer
from pasto_cli.core.directions import choose_directions
from pasto_cli.core.elicitation import Elicitation, elicit
from pasto_cli.core.forward import settle_packing
from pasto_cli.core.memory import enough_memory
from pasto_cli.core.models import LoadedModel, load_model, training_precision
from pasto_cli.core.objective import Objective
from pasto_cli.core.steering import AdapterSteerer, attach
from pasto_cli.core.trainer import Hooks, NotFinite, Step, TrainResult, train
from pasto_cli.core.writers import dense_weight, find_writers, place_writers
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks import load_benchmark
from pasto_cli.evaluation.card import card
from pasto_cli.evaluation.results import EvalRun, parse
from pasto_cli.expression import parse_subspace
from pasto_cli.files import replace_folder, write_text, writing
from pasto_cli.pairs import PairSet, make_pairs, read_pairs, split_pairs, write_pairs
from pasto_cli.recipe import ModelSpec, Recipe
from pasto_cli.recipe_file import dump_recipe, load_recipe


class Watcher(Protocol):
    """Receives what a workflow has to say; the command line shows it, a script may ignore it."""

    def note(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def warn(self, text: str) -> None:
        """Something that may spoil the result."""
        ...

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Something that takes time; yields a function that is told of progress."""
        ...

    def elicitation(self, found: Elicitation) -> None:
        """What the personas do to the clean base model."""
        ...

    def training(self) -> AbstractContextManager[Callable[[Step], None]]:
        """Live view of training; yields a function that receives each step."""
        ...


class Silent:
    """A watcher that says nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    def elicitation(self, found: Elicitation) -> None:
        """Ignore."""

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Ignore."""
        yield lambda _: None

    @contextmanager
    def training(self) -> Iterator[Callable[[Step], None]]:
        """Ignore."""
        yield lambda _: None


class Tokens(NamedTuple):
    """The split of a pair set, in tokens."""

    train: list[TokenPair]
    validation: list[TokenPair]
    certificate: list[TokenPair]
    num_prompts: int
    """Different neutral prompts of the certificate."""


class Trained(NamedTuple):
    """What a training left."""

    folder: Path
    result: TrainResult
    certificate: Certificate | None


class Opened(NamedTuple):
    """A loaded adapter on its base."""

    lm: LoadedModel
    adapter: Adapter
    steerer: AdapterSteerer
    meta: artifact.Meta
    folder: Path


class Part(NamedTuple):
    """One of several dials on the same base."""

    dial: Opened
    own: float
    """Its own coefficient."""


def open_model(spec: ModelSpec, watch: Watcher, packing: bool = True) -> LoadedModel:
    """Load a base model and settle how prompts are packed on it (not needed for generation only)."""
    with watch.task(f"loading {spec.source}"):
        lm = load_model(spec, watch.note)
        if packing:
            settle_packing(lm, watch.warn)
    return lm


def with_seeds(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe, or `count` recipes of it that differ in training.seed (split, order of pairs, initial weights) and name."""
    if count == 1:
        return [recipe]
    first = recipe.training.seed
    return [
        recipe.model_copy(
            update={"name": f"{recipe.name[:54]}-seed{seed}", "training": recipe.training.model_copy(update={"seed": seed})}
        )
        for seed in range(first, first + count)
    ]


def train_recipe(recipe: Recipe, watch: Watcher, root: Path = runs.RUNS) -> Trained:
    """Pairs, elicitation check, training, certificate; the adapter is saved whenever it gets better.

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
    """Go on with a run that was killed or interrupted: it ends with the adapter that it would have had.

    Args:
        run: Its folder, with recipe.yaml and pairs.jsonl; one that was killed before training began starts at the beginning.
        watch: Told what happens.

    Raises:
        PastoError: If the run is finished, incomplete or being trained by another process.
    """
    run = run.resolve()
    if not (run / "recipe.yaml").is_file():
        raise PastoError(f"{run}: no run here (recipe.yaml is missing)", "Give the folder of a run, such as runs/TIME-NAME.")
    recipe = load_recipe(run / "recipe.yaml", [])
    _refuse_finished(run)
    return _train(recipe, read_pairs(run / "pairs.jsonl"), run, watch)


def _refuse_finished(run: Path) -> None:
    if (run / "adapter" / artifact.META).exists() and not checkpoint.begun(run):
        runs.mark_latest(run)  # it may have been killed just before that
        raise PastoError(f"{run} is finished: there is nothing to resume", f"Measure it: pasto eval {run}")


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
            artifact.save(folder / "adapter", adapter, meta, card(meta.model_dump(mode="json"), []))

        result = _optimise(lm, adapter, objective, tokens, recipe, folder, watch, before, save)
        if result.interrupted:
            again = f"go on with: pasto train --resume {folder}"
            if result.steps:
                save(result._asdict(), None)
                watch.warn(
                    f"interrupted after {result.steps} steps: {folder}/adapter holds the best weights so far, uncertified"
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


def _begin(lm: LoadedModel, tokens: Tokens, recipe: Recipe, folder: Path, watch: Watcher) -> tuple[Adapter, Objective]:
    """A fresh adapter and the loss, from the run's checkpoint where there is one."""
    kept = checkpoint.load_start(folder, recipe.adapter)
    if kept is None:
        with training_precision(lm, recipe.training.precision):
            adapter, objective = prepare(lm, tokens, recipe, watch)
        checkpoint.save_start(folder, adapter, objective.basis)
        return adapter, objective
    return kept[0].to(lm.device), _objective(lm, kept[1], recipe)


def _optimise(
    lm: LoadedModel, adapter: Adapter, objective: Objective, tokens: Tokens, recipe: Recipe, folder: Path, watch: Watcher,
    before: checkpoint.Snapshot | None, save: Callable[[dict[str, Any], Certificate | None], None],
) -> TrainResult:  # fmt: skip
    """The training itself, with history.jsonl, checkpoints and the best adapter so far kept on disk."""
    path = folder / "history.jsonl"
    so_far: dict[str, Any] = {"steps": 0, "best_epoch": 0, "best_loss": None, "interrupted": True}
    if before:
        so_far.update(before.facts["so_far"])

    def keep(snapshot: checkpoint.Snapshot) -> None:
        facts = snapshot.facts | {"so_far": so_far, "history_bytes": path.stat().st_size}
        checkpoint.save_state(folder, snapshot._replace(facts=facts))

    with (
        enough_memory("Lower training.batch_size, raise training.accumulation, or set model.quantization: 4bit."),
        _history(path, so_far, before.facts["history_bytes"] if before else 0, watch) as report,
        training_precision(lm, recipe.training.precision) as low,
    ):
        if low:
            watch.note("layers run in bfloat16 during training (training.precision: float32 switches it off)")
        hooks = Hooks(report, lambda: save(so_far, None), keep, watch.warn)
        try:
            return train(objective, adapter, tokens.train, tokens.validation, recipe.training, hooks, before)
        except NotFinite as error:
            rows = [{"chosen": lm.tokenizer.decode(p.chosen), "rejected": lm.tokenizer.decode(p.rejected),
                     "neutral": lm.tokenizer.decode(p.neutral)} for p in error.batch]  # fmt: skip
            write_text(folder / "failed_batch.json", json.dumps({"problem": error.message, "pairs": rows}, indent=1) + "\n")
            error.hint += f" The batch: {folder}/failed_batch.json"
            raise


def tokenise_recipe(pair_set: PairSet, recipe: Recipe, lm: LoadedModel, watch: Watcher) -> Tokens:
    """The recipe's split of a pair set in tokens; pairs that this tokenizer spoils are dropped, with a warning.

    Raises:
        PastoError: If a part of the split is too small to be of use.
    """
    spec = recipe.training
    split = split_pairs(pair_set.pairs, spec.validation, spec.certificate, spec.seed)
    parts = [tokenise_pairs(part, lm.chat) for part in split]
    dropped = sum((d for _, d in parts), start=parts[0][1].__class__())
    for why, count in dropped.items():
        watch.warn(f"{count} pairs dropped: {why}")
    require_pairs([p for kept, _ in parts for p in kept], dropped)
    train_part, validation, certificate = (kept for kept, _ in parts)
    if len(train_part) < 2 or not validation or not certificate:
        raise PastoError(
            f"{len(train_part)} training, {len(validation)} validation and {len(certificate)} certificate pairs are too few",
            "Raise pairs.count or add suffixes.",
        )
    prompts = {tuple(p.neutral[: -p.suffix_len]) for p in certificate}
    return Tokens(train_part, validation, certificate, len(prompts))


def _check_elicitation(lm: LoadedModel, pair_set: PairSet, tokens: Tokens, recipe: Recipe, watch: Watcher) -> None:
    first = pair_set.pairs[0]
    sample = tokens.train[:24]
    with watch.task("do the personas move the base model?"):
        found = elicit(lm, sample, (first.chosen, first.rejected), load_benchmark("mini-dilemmas"), recipe.training.node_budget)
    watch.elicitation(found)
    if not found.span.value > 1e-6:
        raise PastoError(
            "the two personas do not move the base model at all: there is no direction to learn",
            f"Compare {first.chosen!r} with {first.rejected!r}; choose words that contrast.",
        )
    if found.weak:
        watch.warn(
            f"the personas hardly move this model ({found.span.value:.4f} nats a token): expect noise. "
            "Try stronger words, other templates or a larger model."
        )


def prepare(lm: LoadedModel, tokens: Tokens, recipe: Recipe, watch: Watcher) -> tuple[Adapter, Objective]:
    """Calibration, decomposition, directions, loss subspace."""
    spec, space = recipe.adapter, recipe.subspace
    writers = find_writers(lm.model)
    placed = place_writers(writers, len(lm.layers), spec.first_layer, spec.last_layer, spec.max_modules)
    sample = tokens.train[: spec.calibration_pairs]
    with watch.task(f"calibrating on {len(sample)} pairs, decomposing {len(placed)} modules"):
        depth, terms = lm.depth_index(space.depth), parse_subspace(space.expression)
        inputs_of = placed if spec.directions == "activation" else []
        # Only what is looked at: the last layers matter to the suppressed directions alone.
        layers = None if any(t.name == "suppressed" for t in terms) else max(depth, placed[-1].layer + 1)
        states = end_states(lm, sample, inputs_of, recipe.training.node_budget, layers)
        kept = {}
        for writer in placed:  # one at a time: full decompositions of a large model do not fit together
            factors = decompose_writer(writer)
            chosen = choose_directions(spec.directions, writer, factors, spec.rank, states, recipe.training.seed)
            kept[writer.path] = keep(factors, chosen)
        basis = subspaces.build(
            terms, space.rank, depth, space.center, recipe.training.seed,
            subspaces.Activations(
                states.hidden, lambda: lm.model.get_output_embeddings().weight.detach().cpu().float(),
                lambda: (dense_weight(w.module) for w in writers),
            ),
        )  # fmt: skip
    share = subspaces.captured_share(basis, (states.hidden[0::2] - states.hidden[1::2])[:, depth])
    text = (
        f"loss subspace {space.expression!r}, rank {basis.shape[1]}, captures {share:.0%} of the mean chosen - rejected state"
    )
    (watch.warn if share < 0.25 else watch.note)(text)
    adapter = Adapter.create(kept, spec, recipe.training.seed).to(lm.device)
    basis = basis.to(lm.device).contiguous()
    parallel.same([*adapter.state_dict().values(), basis])
    watch.note(f"adapter: {len(placed)} modules, {adapter.num_parameters():,} parameters")
    return adapter, _objective(lm, basis, recipe)


def _objective(lm: LoadedModel, basis: Tensor, recipe: Recipe) -> Objective:
    spec = recipe.training
    return Objective(lm, basis, recipe.losses, recipe.subspace, spec.node_budget, spec.base_cache_mb)


def _describer(
    lm: LoadedModel, adapter: Adapter, recipe: Recipe, pair_set: PairSet, tokens: Tokens
) -> Callable[[dict[str, Any], Certificate | None], artifact.Meta]:
    base = artifact.describe_base(lm, adapter)  # the base does not change: hash it once
    first = pair_set.pairs[0]

    def describe(training: dict[str, Any], certificate: Certificate | None) -> artifact.Meta:
        return artifact.Meta(
            format_version=artifact.FORMAT_VERSION, created=artifact.now(), base=base, bound=recipe.adapter.bound,
            max_angle=recipe.adapter.max_angle, largest_angle=adapter.angle(), recipe=recipe.model_dump(mode="json"),
            pairs_sha256=pair_set.digest, personas=[first.chosen, first.rejected], training=training, certificate=certificate,
            num_pairs={name: len(getattr(tokens, name)) for name in ("train", "validation", "certificate")},
            reference=artifact.reference_logits(lm, adapter), versions=artifact.versions(),
        )  # fmt: skip

    return describe


@contextmanager
def _history(path: Path, so_far: dict[str, Any], size: int, watch: Watcher) -> Iterator[Callable[[Step], None]]:
    """history.jsonl, one line a step after its first `size` bytes, and the live view; `so_far` is what an early save says."""
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


def _certify(lm: LoadedModel, adapter: Adapter, tokens: Tokens, recipe: Recipe, watch: Watcher) -> Certificate:
    with watch.task("certificate: strength on held-out openings", len(tokens.certificate)) as advance:
        likeness = measure_likeness(
            lm, AdapterSteerer(adapter, lm), tokens.certificate, [1.0, -1.0], recipe.training.node_budget, advance
        )
    return certify(likeness, tokens.num_prompts, recipe.training.seed)


def open_dial(
    name: str | None,
    watch: Watcher,
    quantization: str | None = None,
    device: str | None = None,
    verify: bool = True,
    trust_remote_code: bool = False,
    packing: bool = True,
) -> Opened:
    """Load an adapter and the base that it names.

    Args:
        name: Run folder, adapter folder, Hub id, or None for the latest run.
        watch: Told what is loaded.
        quantization: Instead of the one that the adapter was trained with.
        device: Instead of `auto`.
        verify: Check fingerprints and reference logits.
        trust_remote_code: Run Python code from the base model's repository.
        packing: See `open_model`.
    """
    folder, meta = _read_adapter(name, watch)
    # The artifact may be a stranger's: its word never runs code, and its device is not ours.
    changes = {"quantization": quantization, "device": device or "auto", "trust_remote_code": trust_remote_code}
    try:
        spec = ModelSpec.model_validate(meta.base.spec.model_dump() | {k: v for k, v in changes.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
        raise PastoError(problem, "Quantization is none, 4bit or 8bit; device is auto, cpu, mps or cuda.") from None
    if spec.revision is None and meta.base.commit and not meta.base.commit.startswith("sha256:"):
        spec = spec.model_copy(update={"revision": meta.base.commit})
    lm = open_model(spec, watch, packing)
    adapter = artifact.load_adapter(folder, meta, lm, verify)
    steerer = AdapterSteerer(adapter, lm)
    attach(lm, steerer)
    return Opened(lm, adapter, steerer, meta, folder)


def _read_adapter(name: str | None, watch: Watcher) -> tuple[Path, artifact.Meta]:
    """Local folder and pasto.json of what a user named; the Hub is asked for what can only be there."""
    folder = runs.adapter_folder(name)
    if folder is None:
        from pasto_cli.core import hub

        assert name is not None
        with watch.task(f"fetching {name}"):
            folder = hub.download(name)
    elif name is None:
        watch.note(f"adapter: {folder.parent}")
    meta = artifact.read_meta(folder)
    recipe_of(meta, folder)
    return folder, meta


def open_parts(
    names: Sequence[str], watch: Watcher, quantization: str | None = None, device: str | None = None, verify: bool = True,
    packing: bool = True,
) -> list[Part]:  # fmt: skip
    """Several adapters of one base, each as `NAME:COEFFICIENT` (1 where none is given); the base is the first one's.

    Raises:
        PastoError: If one of them was made for another base.
    """
    split = [split_part(name) for name in names]
    first = open_dial(split[0][0], watch, quantization, device, verify, packing=packing)
    parts = [Part(first, 1.0 if split[0][1] is None else split[0][1])]
    for name, own in split[1:]:
        folder, meta = _read_adapter(name, watch)
        adapter = artifact.load_adapter(folder, meta, first.lm, verify)
        parts.append(
            Part(Opened(first.lm, adapter, AdapterSteerer(adapter, first.lm), meta, folder), 1.0 if own is None else own)
        )
    return parts


def split_part(text: str) -> tuple[str, float | None]:
    """`NAME:-0.5` -> its name and coefficient; a name alone has none."""
    name, colon, number = text.rpartition(":")
    try:
        own = float(number)
    except ValueError:
        return text, None
    if not (name and colon):
        return text, None
    if not math.isfinite(own):
        raise PastoError(f"{text}: {number} is not a coefficient", "Write numbers such as NAME:-0.5")
    return name, own


def recipe_of(meta: artifact.Meta, folder: Path) -> Recipe:
    """The recipe inside an artifact."""
    try:
        return Recipe.model_validate(meta.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("recipe", *first["loc"])))
        raise PastoError(f"{folder / artifact.META}: {where}: {first['msg']}", "Copy or download the adapter again.") from None


def pairs_of(dial: Opened) -> PairSet:
    """The pairs that a dial was trained on: from its run's folder, or made again from its recipe.

    Raises:
        PastoError: If neither are the same ones.
    """
    run = runs.run_of(dial.folder)
    if run is not None and (run / "pairs.jsonl").exists():
        found = read_pairs(run / "pairs.jsonl")
    else:
        found = make_pairs(recipe_of(dial.meta, dial.folder).pairs)
    if dial.meta.pairs_sha256 and found.digest != dial.meta.pairs_sha256:
        raise PastoError(
            f"the pairs of {dial.folder} are not those that it was trained on",
            "Put its run's recipe.yaml and pairs.jsonl back.",
        )
    return found


def check_benchmark(name: str | None, data: str | None = None) -> None:
    """Refuse an unknown benchmark before a model is loaded; the Hub is not asked."""
    if name not in (None, "sentiment") and (name != "dailydilemmas" or data is not None):
        load_benchmark(name, data)


def push_adapter(
    name: str | None, repo: str, private: bool, dry_run: bool, watch: Watcher
) -> tuple[str, list[tuple[str, int]], str | None]:
    """Publish an adapter with a card made from the run's own facts.

    Returns:
        The card, the files with their sizes, and the address (None for a dry run).
    """
    from pasto_cli.core import hub

    _require_id(repo)
    folder = runs.adapter_folder(name)
    if folder is None:
        raise PastoError(f"{name} is on the Hub already", "Give a local run or adapter folder.")
    meta = artifact.read_meta(folder)
    recipe_of(meta, folder)
    text = card(meta.model_dump(mode="json"), _own_evaluations(folder)).replace("THIS", repo)
    source = meta.base.spec.source
    if source.startswith((".", "/", "~")) or source.endswith(".gguf"):
        watch.warn(f"the base {source} is not on the Hub: others need the same file to use this adapter")
    if meta.certificate is None or not meta.certificate.passed:
        watch.warn("this adapter has no passed certificate; its card says so")
    if not (folder / artifact.TENSORS).is_file():
        raise PastoError(f"{folder}: {artifact.TENSORS} is missing", "Train again, or give another adapter with --adapter.")
    files = [(name, (folder / name).stat().st_size) for name in (artifact.TENSORS, artifact.META)]
    files.append((artifact.CARD, len(text.encode())))
    if dry_run:
        return text, files, None
    with watch.task(f"uploading to {repo}"):
        return text, files, hub.upload(folder, repo, text, private)


def _require_id(repo: str) -> None:
    """See that a repository id is one: `user/name`, neither of them a way out of a folder."""
    if not re.fullmatch(r"(?!\.+/)[\w.-]+/(?!\.+$)[\w.-]+", repo):
        raise PastoError(f"{repo!r} is not a repository id", "Write user/name.")


def pull_adapter(
    repo: str, out: Path | None, revision: str | None, force: bool, watch: Watcher
) -> tuple[Path, str, artifact.Meta]:
    """Copy an adapter from the Hub into a folder, as a whole or not at all.

    Returns:
        The folder, the commit that was copied, and its pasto.json.

    Raises:
        PastoError: If it is not there or no adapter of ours, or the folder exists.
    """
    from pasto_cli.core import hub

    _require_id(repo)
    folder = out or Path(repo.rpartition("/")[2])
    if folder.exists() and not force:
        raise PastoError(f"{folder} is there already", "Give another --out, or --force to replace it.")
    if folder.exists() and not (folder / artifact.META).is_file():
        raise PastoError(f"{folder} is no adapter: it is not replaced", "Give another --out.")
    folder = folder.resolve() if folder.name == "" else folder
    with watch.task(f"fetching {repo}"):
        found = hub.download(repo, revision=revision)
        meta = artifact.read_meta(found)
        recipe_of(meta, found)
        replace_folder(folder, lambda scratch: shutil.copytree(found, scratch))
    return folder, found.name, meta  # the client's cache names folders by commit


def rewrite_card(folder: Path, meta: artifact.Meta) -> None:
    """Store changed facts with an adapter, and its card made from them."""
    artifact.replace_meta(folder, meta, card(meta.model_dump(mode="json"), _own_evaluations(folder)))


def evaluations_of(run: Path) -> list[EvalRun]:
    """Everything that was measured with a run's adapter, comparisons included; other files are passed over."""
    found = []
    for path in sorted((run / "eval").glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            found.append(parse(path.read_text(encoding="utf-8")))
    return found


def _own_evaluations(folder: Path) -> list[EvalRun]:
    """What a card shows: a comparison has a table of its own."""
    found = evaluations_of(folder.parent) if folder.name == "adapter" else []
    return [run for run in found if "method" not in run.provenance]
