"""Adapters on their bases: what a user names, found, loaded and checked."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.artifact import store
from pasto_cli.core.models.forward import settle_packing
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.pairs.pairs import PairSet, make_pairs, read_pairs
from pasto_cli.core.recipe.schema import ModelSpec, Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.steerer import AdapterSteerer, attach
from pasto_cli.workflows.progress import Watcher


class Opened(NamedTuple):
    """A loaded adapter on its base."""

    lm: LoadedModel
    adapter: Adapter
    steerer: AdapterSteerer
    meta: Meta
    folder: Path


class Part(NamedTuple):
    """One of several dials on the same base."""

    dial: Opened
    own: float
    """Its own coefficient."""


def open_model(spec: ModelSpec, watch: Watcher, packing: bool = True) -> LoadedModel:
    """Load a base model and settle how prompts are packed on it (not needed for generation
    only)."""
    with watch.task(f"loading {spec.source}"):
        lm = load_model(spec, watch.note)
        if packing:
            settle_packing(lm, watch.warn)
    return lm


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
    changes = {
        "quantization": quantization,
        "device": device or "auto",
        "trust_remote_code": trust_remote_code,
    }
    try:
        spec = ModelSpec.model_validate(
            meta.base.spec.model_dump() | {k: v for k, v in changes.items() if v is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
        raise PastoError(
            problem, "Quantization is none, 4bit or 8bit; device is auto, cpu, mps or cuda."
        ) from None
    if spec.revision is None and meta.base.commit and not meta.base.commit.startswith("sha256:"):
        spec = spec.model_copy(update={"revision": meta.base.commit})
    lm = open_model(spec, watch, packing)
    adapter = store.load_adapter(folder, meta, lm, verify)
    steerer = AdapterSteerer(adapter, lm)
    attach(lm, steerer)
    return Opened(lm, adapter, steerer, meta, folder)


def _read_adapter(name: str | None, watch: Watcher) -> tuple[Path, Meta]:
    """Local folder and pasto.json of what a user named; the Hub is asked for what can only be
    there."""
    folder = runs.adapter_folder(name)
    if folder is None:
        from pasto_cli.core.artifact import hub

        assert name is not None
        with watch.task(f"fetching {name}"):
            folder = hub.download(name)
    elif name is None:
        watch.note(f"adapter: {folder.parent}")
    meta = store.read_meta(folder)
    recipe_of(meta, folder)
    return folder, meta


def open_parts(
    names: Sequence[str],
    watch: Watcher,
    quantization: str | None = None,
    device: str | None = None,
    verify: bool = True,
    packing: bool = True,
) -> list[Part]:
    """Several adapters of one base, each as `NAME:COEFFICIENT` (1 where none is given); the base is
    the first one's.

    Raises:
        PastoError: If one of them was made for another base.
    """
    split = [split_part(name) for name in names]
    first = open_dial(split[0][0], watch, quantization, device, verify, packing=packing)
    parts = [Part(first, 1.0 if split[0][1] is None else split[0][1])]
    for name, own in split[1:]:
        folder, meta = _read_adapter(name, watch)
        adapter = store.load_adapter(folder, meta, first.lm, verify)
        parts.append(
            Part(
                Opened(first.lm, adapter, AdapterSteerer(adapter, first.lm), meta, folder),
                1.0 if own is None else own,
            )
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
        raise PastoError(
            f"{text}: {number} is not a coefficient", "Write numbers such as NAME:-0.5"
        )
    return name, own


def recipe_of(meta: Meta, folder: Path) -> Recipe:
    """The recipe inside an artifact."""
    try:
        return Recipe.model_validate(meta.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("recipe", *first["loc"])))
        raise PastoError(
            f"{folder / store.META}: {where}: {first['msg']}", "Copy or download the adapter again."
        ) from None


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
