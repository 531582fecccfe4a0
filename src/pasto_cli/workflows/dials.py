"""Dials: adapters on the base model that they were made for, found, loaded and checked.

A user turns c in [-1, 1]. Between c and the coefficient a of training lie the ends that calibration
found (`core.evaluation.calibration`): a = c k+ for c >= 0, a = c k- below. A dial at a changes the
weights of its base by dW(a) (`core.steering.adapter`). Dials that turn together add up: a set with
own coefficients c_i stands at dW = sum_i dW_i(c * c_i).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.limits import require_coefficients
from pasto_cli.core.artifact import store
from pasto_cli.core.models.forward import settle_packing
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.loading import load_model, load_skeleton
from pasto_cli.core.pairs.pairs import PairSet, make_pairs, read_pairs
from pasto_cli.core.recipe.schema import ModelSpec, Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.coefficients import Coefficients
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.steerer import AdapterSteerer, Mix, Scaled, Steerer, attach
from pasto_cli.workflows.progress import Watcher


class LoadOptions(NamedTuple):
    """How a base is loaded and an adapter checked, where a user wants it otherwise."""

    quantization: str | None = None
    """`none`, `4bit` or `8bit`; None for the one that the adapter was trained with."""
    device: str | None = None
    """`cpu`, `mps`, `cuda` or `cuda:N`; None for `auto`."""
    verify: bool = True
    """Check fingerprints of the base and reference logits."""
    trust_remote_code: bool = False
    """Run Python code from the base model's repository; an adapter cannot ask for it."""
    raw: bool = False
    """Take coefficients as those of training, without the calibrated ends."""
    weights: bool = True
    """Load the base's weights; without them dials can be exported, and nothing more."""


AS_TRAINED = LoadOptions()
"""The base as in training, on the best device, everything checked."""


class FoundAdapter(NamedTuple):
    """An adapter on this machine, before anything large is loaded."""

    folder: Path
    meta: Meta

    @property
    def recipe(self) -> Recipe:
        """The recipe that it was trained with."""
        return recipe_of(self.meta, self.folder)


class Dial:
    """An adapter on its model. Outside `at` the model is its untouched base.

    Args:
        lm: The base model.
        adapter: Made for it.
        meta: The adapter's pasto.json: base, recipe, certificate.
        folder: Where the adapter was read.
        raw: Take coefficients as those of training, without the calibrated ends.
        verify: Check adapters that are loaded beside it.
    """

    def __init__(
        self,
        lm: LoadedModel,
        adapter: Adapter,
        meta: Meta,
        folder: Path,
        raw: bool = False,
        verify: bool = True,
    ) -> None:
        self.lm = lm
        self.adapter = adapter
        self.ends = (1.0, 1.0) if raw else meta.ends
        self._raw, self._verify = raw, verify
        self.steerer = Scaled(AdapterSteerer(adapter, lm), *self.ends)
        self.meta = meta
        self.folder = folder

    @property
    def recipe(self) -> Recipe:
        """The recipe that the adapter was trained with."""
        return recipe_of(self.meta, self.folder)

    def at(self, coefficients: Coefficients, bake: bool = False) -> AbstractContextManager[None]:
        """Steer the model inside this context.

        Args:
            coefficients: One number for every row of a batch, or one for each row.
            bake: Fold one coefficient into the weights for the time of this context: decoding then
                costs what the base costs.

        Raises:
            PastoError: If they are not finite, not as many as the rows of a batch, or cannot be
                baked.
        """
        return self.steerer.baked(coefficients) if bake else self.steerer.at(coefficients)

    def raw(self, coefficient: float) -> float:
        """The coefficient of training, a, of the one that a user turns, c."""
        return self.steerer.inner(coefficient)

    def beside(self, name: str) -> "Dial":
        """Another adapter on this machine, on this dial's model.

        Raises:
            PastoError: If it was made for another base.
        """
        folder = runs.adapter_folder(name)
        assert folder is not None, name
        meta = store.read_meta(folder)
        adapter = store.load_adapter(folder, meta, self.lm, self._verify)
        return Dial(self.lm, adapter, meta, folder, self._raw, self._verify)

    def generate(
        self,
        prompt: str,
        coeffs: Sequence[float] = (-1.0, 0.0, 1.0),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[tuple[float, str]]:
        """Answers to a user's message.

        Args:
            prompt: Rendered by the model's own chat template.
            coeffs: Coefficients.
            max_new_tokens: Longest answer.
            temperature: 0 is greedy.
            seed: Seed of sampling.

        Yields:
            (coefficient, text), in the order of `coeffs`.
        """
        texts = generate(
            self.lm, self.steerer, prompt, list(coeffs), max_new_tokens, temperature, seed
        )
        yield from zip(coeffs, texts, strict=True)


@dataclass(frozen=True)
class DialSet:
    """One dial, or several on one base that turn together."""

    dials: Sequence[Dial]
    own: Sequence[float]
    """Each dial's own coefficient, where the set stands at 1."""
    coefficients: Sequence[float] = (1.0,)
    """Where the set is asked to stand."""

    @property
    def lm(self) -> LoadedModel:
        """The base that they share."""
        return self.dials[0].lm

    @property
    def steerer(self) -> Steerer:
        """Turns all of them: at a, each dial stands at a times its own coefficient."""
        if len(self.dials) == 1 and self.own[0] == 1.0:
            return self.dials[0].steerer
        return Mix([(dial.steerer, own) for dial, own in zip(self.dials, self.own, strict=True)])


def open_model(
    spec: ModelSpec, watch: Watcher, packing: bool = True, weights: bool = True
) -> LoadedModel:
    """Load a base model.

    Args:
        spec: The model section of a recipe.
        watch: Told what is loaded.
        packing: Settle how prompts are packed on it; not needed where each runs by itself.
        weights: See `LoadOptions`.
    """
    if not weights:
        return load_skeleton(spec, watch.note)
    with watch.task(f"loading {spec.source}"):
        lm = load_model(spec, watch.note)
        if packing:
            settle_packing(lm, watch.warn)
    return lm


def open_dial(
    name: str | None, watch: Watcher, options: LoadOptions = AS_TRAINED, packing: bool = True
) -> Dial:
    """Load an adapter and the base that it names.

    Args:
        name: Run folder, adapter folder, Hub id, or None for the latest run.
        watch: Told what is loaded.
        options: How the base is loaded and the adapter checked.
        packing: See `open_model`.

    Raises:
        PastoError: If adapter or base are missing, damaged or do not belong together.
    """
    return open_found(find_adapter(name, watch), watch, options, packing)


def open_found(
    found: FoundAdapter, watch: Watcher, options: LoadOptions = AS_TRAINED, packing: bool = True
) -> Dial:
    """Load an adapter that was found, and the base that it names; see `open_dial`."""
    folder, meta = found
    lm = open_model(_base_of(meta, options), watch, packing, options.weights)
    adapter = store.load_adapter(folder, meta, lm, options.verify)
    dial = Dial(lm, adapter, meta, folder, options.raw, options.verify)
    _warn_of_other_quantization(dial, watch)
    attach(lm, dial.steerer)
    return dial


def open_set(
    names: Sequence[str],
    watch: Watcher,
    options: LoadOptions = AS_TRAINED,
    *,
    coefficients: Sequence[float] = (1.0,),
    packing: bool = True,
) -> DialSet:
    """Load several adapters of one base, which is the first one's.

    Args:
        names: `NAME:COEFFICIENT` or `NAME` (coefficient 1) of each.
        watch: Told what is loaded.
        options: How the base is loaded and the adapters checked.
        coefficients: Where the set is asked to stand.
        packing: See `open_model`.

    Raises:
        PastoError: If one of them was made for another base.
    """
    split = [split_coefficient(name) for name in names]
    first = open_dial(split[0][0], watch, options, packing)
    dials = [first]
    for name, _ in split[1:]:
        folder, meta = find_adapter(name, watch)
        adapter = store.load_adapter(folder, meta, first.lm, options.verify)
        dials.append(Dial(first.lm, adapter, meta, folder, options.raw))
        _warn_of_other_quantization(dials[-1], watch)
    return DialSet(dials, [1.0 if own is None else own for _, own in split], coefficients)


def open_dials(
    names: Sequence[str] | None,
    watch: Watcher,
    options: LoadOptions,
    *,
    coefficients: Sequence[float] | None,
    default: Sequence[float] = (1.0,),
) -> DialSet:
    """Load what --adapter names, to stand where --coeff says. Needs no packing.

    Args:
        names: `NAME` or `NAME:COEFFICIENT` of each; None for the latest run.
        watch: Told what is loaded.
        options: How the base is loaded and the adapters checked.
        coefficients: Those of one dial; with several dials, factors of their own coefficients.
        default: Coefficients of one dial where none of them is given.

    Raises:
        PastoError: For options that contradict each other.
    """
    require_coefficients(coefficients or (), "--coeff")
    if names is not None and len(names) > 1:
        dials = open_set(names, watch, options, coefficients=coefficients or (1.0,), packing=False)
        _warn_beyond_ends(dials, watch)
        return dials
    name, own = split_coefficient(names[0]) if names else (None, None)
    if names and own is not None and coefficients:
        raise PastoError(f"{names[0]} has its coefficient already", "Leave --coeff out.")
    dial = open_dial(name, watch, options, packing=False)
    if own is not None:
        coefficients = [own]
    dials = DialSet([dial], [1.0], coefficients or default)
    _warn_beyond_ends(dials, watch)
    return dials


def _warn_beyond_ends(dials: DialSet, watch: Watcher) -> None:
    largest = max(map(abs, dials.coefficients))
    turned = zip(dials.dials, dials.own, strict=True)
    if any(dial.ends != (1.0, 1.0) and abs(own) * largest > 1 for dial, own in turned):
        watch.warn("beyond the calibrated range of -1 to 1: text may fall apart")


def _warn_of_other_quantization(dial: Dial, watch: Watcher) -> None:
    kept, loaded = dial.meta.calibration, dial.lm.spec.quantization
    uses = dial.ends != (1.0, 1.0)
    if uses and kept is not None and kept.quantization != loaded:
        watch.warn(f"calibrated on a base of quantisation {kept.quantization}, not {loaded}")


def split_coefficient(text: str) -> tuple[str, float | None]:
    """`NAME:-0.5` -> its name and coefficient; a name alone has none."""
    name, colon, number = text.rpartition(":")
    try:
        own = float(number)
    except ValueError:
        if name and Path(name).exists() and not Path(text).exists():
            raise PastoError(
                f"{text}: {number!r} is no coefficient", f"Write {name}:-0.5, or {name} alone."
            ) from None
        return text, None
    if not (name and colon):
        return text, None
    require_coefficients([own], text)
    return name, own


def find_adapter(name: str | None, watch: Watcher) -> FoundAdapter:
    """Find what a user named, without its base; what is not here is fetched.

    Raises:
        PastoError: If there is none, or its pasto.json is damaged.
    """
    folder = runs.adapter_folder(name)
    if folder is None:
        from pasto_cli.core.artifact import hub

        assert name is not None
        with watch.task(f"fetching {name}"):
            folder = hub.download(name)
    elif name is None:
        watch.note(f"adapter: {folder.parent}")
    meta = store.read_meta(folder)
    recipe_of(meta, folder)  # a damaged recipe is refused before a model is loaded
    return FoundAdapter(folder, meta)


def _base_of(meta: Meta, options: LoadOptions) -> ModelSpec:
    """How to load the base of an adapter: as it was trained with, but for the user's options."""
    kept = meta.base.spec.model_dump()
    # The artifact may be a stranger's: its word never runs code, and its device is not ours.
    changes = {"device": options.device or "auto", "trust_remote_code": options.trust_remote_code}
    if options.quantization is not None:
        changes["quantization"] = options.quantization
    try:
        spec = ModelSpec.model_validate(kept | changes)
    except ValidationError as error:
        raise PastoError(
            f"{first_problem(error)}, not {error.errors()[0]['input']!r}",
            "Quantization is none, 4bit or 8bit; device is auto, cpu, mps, cuda or balanced.",
        ) from None
    # A recipe that names no revision was trained on the commit of that day. What has a hash instead
    # of a commit is a local file.
    if spec.revision is None and meta.base.commit and not meta.base.commit.startswith("sha256:"):
        spec = spec.model_copy(update={"revision": meta.base.commit})
    return spec


def recipe_of(meta: Meta, folder: Path) -> Recipe:
    """The recipe inside an artifact.

    Raises:
        PastoError: If it is none of ours.
    """
    try:
        return meta.trained_with
    except ValidationError as error:
        raise PastoError(
            f"{folder / store.META}: recipe.{first_problem(error)}",
            "Copy or download the adapter again.",
        ) from None


def pairs_of(dial: Dial) -> PairSet:
    """The pairs that a dial was trained on: from its run's folder, or made again from its recipe.

    Raises:
        PastoError: If neither are the same ones.
    """
    run = runs.run_of(dial.folder)
    if run is not None and (run / "pairs.jsonl").exists():
        found = read_pairs(run / "pairs.jsonl")
    else:
        found = make_pairs(dial.recipe.pairs)
    if dial.meta.pairs_sha256 and found.digest != dial.meta.pairs_sha256:
        raise PastoError(
            f"the pairs of {dial.folder} are not those that it was trained on",
            "Put its run's recipe.yaml and pairs.jsonl back.",
        )
    return found
