"""The adapter on disk: safetensors and JSON, written atomically, loaded strictly, checked against its base.

adapter.safetensors     <module path>.{u,s,v,theta,delta}
pasto.json              where it came from, what it was shown to do, fingerprints of the base, reference logits
README.md               the card
"""

import hashlib
import importlib.metadata
import json
import math
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pasto_cli.core.adapter import Adapter, Factors, Rotation
from pasto_cli.core.certificate import Certificate, Interval
from pasto_cli.core.models import LoadedModel
from pasto_cli.core.writers import dense_weight, is_linear
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.results import without_nan
from pasto_cli.files import read_limited, write_text, writing
from pasto_cli.recipe import ModelSpec

FORMAT_VERSION = 1
TENSORS, META, CARD = "adapter.safetensors", "pasto.json", "README.md"
PARTS = ("u", "s", "v", "theta", "delta")
REFERENCE_PROMPT = "Describe yourself in one sentence."
REFERENCE_LOGITS = 16
LARGEST_META = 2**24
"""Bytes of a pasto.json."""


class Base(BaseModel):
    """The model that an adapter was made for."""

    model_config = ConfigDict(extra="forbid")

    spec: ModelSpec
    commit: str | None
    architecture: str
    dtype: str
    fingerprints: dict[str, str]
    """Module path -> SHA-256 of the weight as it was in memory."""


class Reference(BaseModel):
    """Logits of a fixed prompt, to see after loading that everything fits together."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    token_ids: list[int] = Field(min_length=1)
    logits: dict[str, list[float]]
    """Coefficient -> logits of `token_ids` after the prompt."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.logits) != {"-1", "0", "1"} or any(len(x) != len(self.token_ids) for x in self.logits.values()):
            raise ValueError("reference logits must be those at -1, 0 and 1, one for each token")
        return self


class Calibration(BaseModel):
    """How far the dial may be turned for a stated disturbance of the base model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kl_p95: float
    """The budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats."""
    coefficients: dict[Literal["1", "-1"], float]
    """Sign -> the coefficient that reaches it."""
    reached: dict[Literal["1", "-1"], Interval]
    """Sign -> KL p95 there, nats."""
    quantization: str
    """Of the base that it was measured on."""

    @model_validator(mode="after")
    def _signs(self) -> Self:
        if not (self.coefficients.get("1", 0.0) > 0 > self.coefficients.get("-1", 0.0)):
            raise ValueError("a calibration has a positive and a negative coefficient")
        return self


class Meta(BaseModel):
    """pasto.json."""

    model_config = ConfigDict(extra="forbid")

    format_version: int
    created: str
    base: Base
    bound: Literal["spectral", "entrywise"]
    max_angle: float = Field(gt=0.0, lt=180.0, allow_inf_nan=False)
    """Degrees, as the recipe says."""
    largest_angle: float
    """True largest rotation angle at coefficient 1, degrees."""
    recipe: dict[str, Any]
    tensors_sha256: str | None = None
    """Of adapter.safetensors; written by `save`."""
    pairs_sha256: str
    num_pairs: dict[str, int]
    personas: list[str]
    """One filled template of each persona: positive, negative."""
    training: dict[str, Any]
    certificate: Certificate | None
    calibration: Calibration | None = None
    """Made by `pasto calibrate`."""
    reference: Reference
    versions: dict[str, str]

    def coefficient(self, strength: float) -> float:
        """The coefficient of a strength in per cent of the calibrated one.

        Raises:
            PastoError: Without a calibration, or beyond 100 %.
        """
        if self.calibration is None:
            raise PastoError(
                "this dial is not calibrated, so that per cent mean nothing", "Run pasto calibrate, or use --coeff."
            )
        if not abs(strength) <= 100:
            raise PastoError(f"strength {strength:g} is not between -100 and 100 per cent", "Use --coeff to go further.")
        if strength == 0:
            return 0.0
        return abs(strength) / 100 * self.calibration.coefficients["1" if strength > 0 else "-1"]


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    names = ("pasto-cli", "torch", "transformers", "safetensors", "bitsandbytes", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(module: Any) -> str:
    """SHA-256 of a weight's bytes, packed if it is quantised."""
    data = module.weight.detach().cpu().contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()


def describe_base(lm: LoadedModel, adapter: Adapter) -> Base:
    """Identity of the base model, with the fingerprints of the adapted weights."""
    return Base(
        spec=lm.spec,
        commit=lm.commit,
        architecture=type(lm.model).__name__,
        dtype=str(lm.dtype).removeprefix("torch."),
        fingerprints={path: fingerprint(lm.model.get_submodule(path)) for path in adapter.paths},
    )


@torch.no_grad()
def reference_logits(lm: LoadedModel, adapter: Adapter, token_ids: list[int] | None = None) -> Reference:
    """Logits of the likeliest tokens (or of given ones) after a fixed prompt at -1, 0 and +1."""
    coefficients = (-1.0, 0.0, 1.0)
    ids = torch.tensor([lm.fixed_prompt(REFERENCE_PROMPT)] * len(coefficients), device=lm.device)
    with adapter.at(lm.model, coefficients):
        last = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    each = {f"{a:g}": logits for a, logits in zip(coefficients, lm.head(last).float().cpu(), strict=True)}
    token_ids = token_ids or each["0"].topk(REFERENCE_LOGITS).indices.tolist()
    return Reference(prompt=REFERENCE_PROMPT, token_ids=token_ids, logits={c: x[token_ids].tolist() for c, x in each.items()})


def save(folder: Path, adapter: Adapter, meta: Meta, card: str) -> None:
    """Write an artifact; a crash at any moment leaves the old one or the new one, never half of one.

    Raises:
        PastoError: If the disk is full or the folder cannot be written.
    """
    tensors = {
        f"{path}.{part}": getattr(rotation, part).detach().cpu().contiguous()
        for path, rotation in adapter.items()
        for part in PARTS
    }
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".adapter-", dir=folder.parent))
    old = scratch.with_name(scratch.name + "-old")
    try:
        save_file(tensors, scratch / TENSORS, metadata={"format": f"pasto {FORMAT_VERSION}"})
        meta = meta.model_copy(update={"tensors_sha256": _sha256(scratch / TENSORS)})
        (scratch / META).write_text(json.dumps(without_nan(meta.model_dump(mode="json")), indent=1), encoding="utf-8")
        (scratch / CARD).write_text(card, encoding="utf-8")
        scratch.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        raise PastoError(f"cannot write {folder}: {error}", "Free some disk or choose another folder with --out.") from None
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            old.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def replace_meta(folder: Path, meta: Meta, card: str) -> None:
    """Write pasto.json and the card of an artifact again; its tensors stay.

    Raises:
        PastoError: If they cannot be written.
    """
    write_text(folder / META, json.dumps(without_nan(meta.model_dump(mode="json")), indent=1))
    write_text(folder / CARD, card)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_meta(folder: Path) -> Meta:
    """Read pasto.json.

    Raises:
        PastoError: If the folder holds no adapter, or one of another format.
    """
    path = folder / META
    try:
        raw = json.loads(read_limited(path, LARGEST_META))
    except FileNotFoundError:
        raise PastoError(
            f"{folder}: no adapter here ({META} is missing)", "Give the folder of a run, its adapter/ folder or a Hub id."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PastoError(f"{path}: cannot be read ({error})", "Copy or download the adapter again.") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise PastoError(
            f"{path}: format {version!r}; this pasto reads format {FORMAT_VERSION}", "Use the pasto version that wrote it."
        )
    try:
        return Meta.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise PastoError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", "Copy or download the adapter again."
        ) from None


def load_adapter(folder: Path, meta: Meta, lm: LoadedModel, verify: bool = True) -> Adapter:
    """Load an adapter for its base.

    Args:
        folder: With `adapter.safetensors`.
        meta: Its pasto.json.
        lm: The base model, loaded.
        verify: Check fingerprints and reference logits.

    Raises:
        PastoError: For missing, unexpected or mis-shaped tensors, a damaged file, or another base.
    """
    path = folder / TENSORS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PastoError(f"{path}: damaged or missing ({error})", "Copy or download the adapter again.") from None
    paths = list(meta.base.fingerprints)
    wanted = {f"{p}.{part}" for p in paths for part in PARTS}
    if missing := sorted(wanted - set(tensors)):
        raise PastoError(
            f"{path}: {len(missing)} tensors are missing, such as {missing[0]}", "Copy or download the adapter again."
        )
    if extra := sorted(set(tensors) - wanted):
        raise PastoError(f"{path}: {len(extra)} unexpected tensors, such as {extra[0]}", "Copy or download the adapter again.")
    rotations = {}
    for p in paths:
        u, s, v, theta, delta = (tensors[f"{p}.{part}"] for part in PARTS)
        _check_shapes(lm, p, u, s, v, theta, delta)
        rotations[p] = Rotation(Factors(u, s, v), theta, delta)
    if bad := sorted(name for name, x in tensors.items() if not bool(torch.isfinite(x).all())):
        raise PastoError(f"{path}: {bad[0]} holds numbers that are not finite", "Copy or download the adapter again.")
    adapter = Adapter(rotations, meta.bound, math.radians(meta.max_angle)).to(lm.device).requires_grad_(False)
    if verify:
        if meta.tensors_sha256 is not None and _sha256(path) != meta.tensors_sha256:
            raise PastoError(f"{path}: not the file that {META} was written with", "Copy or download the adapter again.")
        _verify_base(lm, adapter, meta.base)
        compare_reference(lm, adapter, meta)
    return adapter


def _check_shapes(lm: LoadedModel, path: str, u: Any, s: Any, v: Any, theta: Any, delta: Any) -> None:
    try:
        module = lm.model.get_submodule(path)
    except AttributeError:
        raise PastoError(
            f"wrong base: {lm.spec.source} ({type(lm.model).__name__}) has no module {path}",
            "Load the base that the adapter names.",
        ) from None
    if not is_linear(module) or 0 in (u.dim(), v.dim()):
        raise PastoError(f"wrong base: {path} of {lm.spec.source} is no linear layer", "Load the base that the adapter names.")
    r = s.shape[0] if s.dim() == 1 else -1
    shapes = {
        "u": tuple(u.shape),
        "s": tuple(s.shape),
        "v": tuple(v.shape),
        "theta": tuple(theta.shape),
        "delta": tuple(delta.shape),
    }
    right = {"u": (u.shape[0], r), "s": (r,), "v": (v.shape[0], r), "theta": (r, r), "delta": (r,)}
    features = (getattr(module, "out_features", u.shape[0]), getattr(module, "in_features", v.shape[0]))
    if (
        shapes != right
        or (u.shape[0], v.shape[0]) != features
        or any(x.dtype != torch.float32 for x in (u, s, v, theta, delta))
    ):
        raise PastoError(
            f"{path}: tensors of shape {shapes} do not fit a module of {features[1]} inputs and {features[0]} outputs",
            "Load the base that the adapter names, or download the adapter again.",
        )


def _same_storage(lm: LoadedModel, base: Base) -> bool:
    """Whether weights are held as they were when the adapter was made, so that bytes can be compared."""
    return lm.spec.quantization == base.spec.quantization and str(lm.dtype).removeprefix("torch.") == base.dtype


def same_bytes(lm: LoadedModel, base: Base) -> bool:
    """Whether every adapted weight is, byte for byte, the one that the adapter was made for."""
    return _same_storage(lm, base) and all(fingerprint(lm.model.get_submodule(p)) == h for p, h in base.fingerprints.items())


def _verify_base(lm: LoadedModel, adapter: Adapter, base: Base) -> None:
    for path, rotation in adapter.items():
        module = lm.model.get_submodule(path)
        fits = _same_storage(lm, base) and fingerprint(module) == base.fingerprints[path]
        if not fits and (lm.spec.quantization != "none" or not _same_storage(lm, base)):
            # Another precision, or a quantiser that may round otherwise on another device or version.
            fits = _diagonal(module, rotation)
        if not fits:
            raise PastoError(
                f"wrong base: {path} of {lm.spec.source} is not the weight that the adapter was made for",
                f"It was made for {base.spec.source}"
                + (f" at {base.commit}" if base.commit else "")
                + ". Load that, or use --no-verify.",
            )


def _diagonal(module: Any, rotation: Rotation) -> bool:
    """Whether the kept singular directions diagonalise the weight: U^T W V = diag(S)."""
    core = rotation.u.T @ dense_weight(module).to(rotation.u.device) @ rotation.v
    return bool((core - torch.diag(rotation.s)).norm() < 0.2 * rotation.s.norm())


def require_fit(lm: LoadedModel, adapter: Adapter, source: str) -> None:
    """See that an adapter without fingerprints was made for this base.

    Raises:
        PastoError: If a module is missing, has other dimensions, or another weight.
    """
    for path, r in adapter.items():
        _check_shapes(lm, path, r.u, r.s, r.v, r.theta, r.delta)
        if not _diagonal(lm.model.get_submodule(path), r):
            raise PastoError(
                f"wrong base: {path} of {source} is not the weight that the adapter was made for", "Name the right one: --base."
            )


def compare_reference(lm: LoadedModel, adapter: Adapter, meta: Meta) -> dict[str, float]:
    """Coefficient -> largest difference of the reference logits to those stored.

    Raises:
        PastoError: If one is larger than rounding explains.
    """
    found = {}
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    if not all(0 <= token < vocabulary for token in meta.reference.token_ids):
        raise PastoError(
            "wrong base: the reference names tokens that this vocabulary lacks", "Load the base that the adapter names."
        )
    now = reference_logits(lm, adapter, meta.reference.token_ids)
    exact = _same_storage(lm, meta.base) and lm.dtype == torch.float32 and lm.spec.quantization == "none"
    for coefficient, then in meta.reference.logits.items():
        expected, got = torch.tensor(then), torch.tensor(now.logits[coefficient])
        tolerance = (2e-3 if exact else 1e-1) * expected.abs().max().clamp_min(1.0)
        error = found[coefficient] = (expected - got).abs().max().item()
        if not error <= tolerance:
            raise PastoError(
                f"reference logits at coefficient {coefficient} differ by {error:.3g} from those stored with the adapter",
                "The base or a library behaves differently here; see versions in pasto.json, or use --no-verify.",
            )
    return found


def now() -> str:
    """Present time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
