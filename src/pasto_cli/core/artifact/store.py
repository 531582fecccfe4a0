"""The adapter on disk: written as a whole, loaded strictly, checked against its base.

adapter.safetensors     <module path>.{u,s,v,theta,delta}, of the kind lora .{a,b}, float32
pasto.json              `Meta`: where it came from, what it was shown to do, fingerprints of the
                        base, reference logits, SHA-256 of the tensors
README.md               the card

Safetensors and JSON only: loading a stranger's adapter runs no code of theirs.
"""

import hashlib
import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import read_limited, recover, replace_folder, write_text
from pasto_cli.base.runs import ADAPTER_META
from pasto_cli.core.artifact.verify import check_shapes, compare_reference, verify_base
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.records.adapter import FORMAT_VERSION, Meta
from pasto_cli.core.records.evaluation import without_nan
from pasto_cli.core.steering.adapter import Adapter, to_tensors
from pasto_cli.core.steering.kinds import KINDS, from_tensors, tensor_names

TENSORS, META, CARD = "adapter.safetensors", ADAPTER_META, "README.md"
LARGEST_META = 2**24
"""Bytes of a pasto.json."""


def save(folder: Path, adapter: Adapter, meta: Meta, card: str) -> None:
    """Write an artifact; a kill at any moment leaves the old one or the new one, never half of one.

    Raises:
        PastoError: If the disk is full or the folder cannot be written.
    """
    tensors = to_tensors(adapter)

    def write(scratch: Path) -> None:
        scratch.mkdir()
        save_file(tensors, scratch / TENSORS, {"format": f"pasto {FORMAT_VERSION}"})
        hashed = meta.model_copy(update={"tensors_sha256": _sha256(scratch / TENSORS)})
        (scratch / META).write_text(as_json(hashed), encoding="utf-8")
        (scratch / CARD).write_text(card, encoding="utf-8")

    replace_folder(folder, write)


def replace_meta(folder: Path, meta: Meta, card: str) -> None:
    """Write pasto.json and the card of an artifact again; its tensors stay.

    Raises:
        PastoError: If they cannot be written.
    """
    write_text(folder / META, as_json(meta))
    write_text(folder / CARD, card)


def as_json(meta: Meta) -> str:
    """Text of pasto.json."""
    return json.dumps(without_nan(meta.model_dump(mode="json")), indent=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_meta(folder: Path) -> Meta:
    """Read pasto.json.

    Raises:
        PastoError: If the folder holds no adapter, or one of another format.
    """
    recover(folder)
    path = folder / META
    try:
        raw = json.loads(read_limited(path, LARGEST_META))
    except FileNotFoundError:
        raise PastoError(
            f"{folder}: no adapter here ({META} is missing)",
            "Give the folder of a run, its adapter/ folder or a Hub id.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PastoError(
            f"{path}: cannot be read ({error})", "Copy or download the adapter again."
        ) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise PastoError(
            f"{path}: format {version!r}; this pasto reads format {FORMAT_VERSION}",
            "Use the pasto version that wrote it.",
        )
    try:
        return Meta.model_validate(raw)
    except ValidationError as error:
        raise PastoError(
            f"{path}: {first_problem(error)}", "Copy or download the adapter again."
        ) from None


def require_whole(folder: Path, meta: Meta) -> None:
    """See that the tensors are, byte for byte, those that pasto.json was written with.

    Raises:
        PastoError: If they are others, such as a half of them.
    """
    path = folder / TENSORS
    if meta.tensors_sha256 is not None and _sha256(path) != meta.tensors_sha256:
        raise PastoError(
            f"{path}: not the file that {META} was written with",
            "Copy or download the adapter again.",
        )


def load_adapter(folder: Path, meta: Meta, lm: LoadedModel, verify: bool = True) -> Adapter:
    """Load an adapter for its base.

    Args:
        folder: With `adapter.safetensors`.
        meta: Its pasto.json.
        lm: The base model, loaded.
        verify: Check fingerprints and reference logits; of a skeleton only the tensors' hash.

    Raises:
        PastoError: For missing, unexpected or mis-shaped tensors, a damaged file, or another base.
    """
    path = folder / TENSORS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PastoError(
            f"{path}: damaged or missing ({error})", "Copy or download the adapter again."
        ) from None
    paths = list(meta.base.fingerprints)
    wanted = set(tensor_names(meta.kind, paths))
    if missing := sorted(wanted - set(tensors)):
        raise PastoError(
            f"{path}: {len(missing)} tensors are missing, such as {missing[0]}",
            "Copy or download the adapter again.",
        )
    if extra := sorted(set(tensors) - wanted):
        raise PastoError(
            f"{path}: {len(extra)} unexpected tensors, such as {extra[0]}",
            "Copy or download the adapter again.",
        )
    for p in paths:  # before anything is made of them: a stranger's tensors may have any shape
        module = KINDS[meta.kind].MODULE
        check_shapes(lm, p, module, {part: tensors[f"{p}.{part}"] for part in module.PARTS})
    if bad := sorted(name for name, x in tensors.items() if not bool(torch.isfinite(x).all())):
        raise PastoError(
            f"{path}: {bad[0]} holds numbers that are not finite",
            "Copy or download the adapter again.",
        )
    adapter = from_tensors(paths, tensors, meta)
    adapter = adapter.to(lm.device if lm.has_weights else "cpu").requires_grad_(False)
    if verify:
        require_whole(folder, meta)
        if lm.has_weights:
            verify_base(lm, adapter, meta.base)
            compare_reference(lm, adapter, meta)
    return adapter
