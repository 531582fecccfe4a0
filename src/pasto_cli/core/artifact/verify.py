"""Does an adapter belong to the base that was loaded? Fingerprints, shapes and reference logits.

Where the weights are held as they were when the adapter was made, their bytes must be the same.
In another precision the singular directions that a rotation keeps must still diagonalise the
weight, U^T W V = diag(S); the kind lora keeps none. The reference logits then show that base,
adapter and libraries together behave as they did.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import is_linear, linear_sizes
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.spread import weight_here
from pasto_cli.core.records.adapter import BaseInfo, Meta, Reference
from pasto_cli.core.steering.adapter import Adapter, ModuleAdapter

REFERENCE_PROMPT = "Describe yourself in one sentence."
REFERENCE_LOGITS = 16
"""How many of the likeliest tokens after the prompt are stored."""


def fingerprint(module: Any) -> str:
    """SHA-256 of a weight's bytes, packed if it is quantised."""
    with weight_here(module):
        data = module.weight.detach().cpu().contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()


def describe_base(lm: LoadedModel, adapter: Adapter) -> BaseInfo:
    """Identity of the base model, with the fingerprints of the adapted weights."""
    return BaseInfo(
        spec=lm.spec,
        commit=lm.commit,
        architecture=type(lm.model).__name__,
        dtype=str(lm.dtype).removeprefix("torch."),
        fingerprints={path: fingerprint(lm.model.get_submodule(path)) for path in adapter.paths},
    )


@torch.no_grad()
def reference_logits(
    lm: LoadedModel, adapter: Adapter, token_ids: list[int] | None = None
) -> Reference:
    """Logits of the likeliest tokens (or of given ones) after a fixed prompt at -1, 0 and +1."""
    coefficients = (-1.0, 0.0, 1.0)
    ids = torch.tensor([lm.fixed_prompt(REFERENCE_PROMPT)] * len(coefficients), device=lm.device)
    with adapter.at(lm.model, coefficients):
        last = lm.trunk(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    each = {
        f"{a:g}": logits
        for a, logits in zip(coefficients, lm.head(last).float().cpu(), strict=True)
    }
    token_ids = token_ids or each["0"].topk(REFERENCE_LOGITS).indices.tolist()
    return Reference(
        prompt=REFERENCE_PROMPT,
        token_ids=token_ids,
        logits={c: x[token_ids].tolist() for c, x in each.items()},
    )


def check_shapes(
    lm: LoadedModel, path: str, kind: type[ModuleAdapter], tensors: Mapping[str, Tensor]
) -> None:
    """See that the tensors of one module fit the module of the base that they are for.

    Args:
        lm: The base model.
        path: Module path.
        kind: What is to be made of them.
        tensors: Part -> tensor, float32 all of them.

    Raises:
        PastoError: If the module is not there or not linear, or a shape or dtype is another.
    """
    try:
        module: Any = lm.model.get_submodule(path)
    except AttributeError:
        raise PastoError(
            f"wrong base: {lm.spec.source} ({type(lm.model).__name__}) has no module {path}",
            "Load the base that the adapter names.",
        ) from None
    if not is_linear(module):
        raise PastoError(
            f"wrong base: {path} of {lm.spec.source} is no linear layer",
            "Load the base that the adapter names.",
        )
    shapes = {part: tuple(x.shape) for part, x in tensors.items()}
    d_in, d_out = linear_sizes(module)
    # The rank is one of the sizes that occur; which one it is, the shapes themselves say.
    ranks = {size for shape in shapes.values() for size in shape if size > 0}
    fitting = any(shapes == kind.shapes(d_in, d_out, rank) for rank in ranks)
    if not fitting or any(x.dtype != torch.float32 for x in tensors.values()):
        raise PastoError(
            f"{path}: tensors of shape {shapes} do not fit a module of {d_in} inputs and "
            f"{d_out} outputs",
            "Load the base that the adapter names, or download the adapter again.",
        )


def _same_storage(lm: LoadedModel, base: BaseInfo) -> bool:
    """Whether weights are held as they were when the adapter was made: bytes can be compared."""
    return (
        lm.spec.quantization == base.spec.quantization
        and str(lm.dtype).removeprefix("torch.") == base.dtype
    )


def same_bytes(lm: LoadedModel, base: BaseInfo) -> bool:
    """Whether every adapted weight is, byte for byte, the one that the adapter was made for."""
    return _same_storage(lm, base) and all(
        fingerprint(lm.model.get_submodule(p)) == h for p, h in base.fingerprints.items()
    )


def verify_base(lm: LoadedModel, adapter: Adapter, base: BaseInfo) -> None:
    """See that every adapted weight is the one that the adapter was made for.

    Raises:
        PastoError: With the first weight that is another.
    """
    for path, own in adapter.items():
        module = lm.model.get_submodule(path)
        fits = _same_storage(lm, base) and fingerprint(module) == base.fingerprints[path]
        if not fits and (lm.spec.quantization != "none" or not _same_storage(lm, base)):
            # Another precision, or a quantiser that may round otherwise on another device or
            # version.
            fits = own.fits(module)
        if not fits:
            source = base.spec.source + (f" at {base.commit}" if base.commit else "")
            raise PastoError(
                f"wrong base: {path} of {lm.spec.source} is not the weight that the adapter was "
                f"made for",
                f"It was made for {source}. Load that, or use --no-verify.",
            )


def require_fit(lm: LoadedModel, adapter: Adapter, source: str) -> None:
    """See that an adapter without fingerprints was made for this base.

    Raises:
        PastoError: If a module is missing, has other dimensions, or another weight.
    """
    for path, own in adapter.items():
        check_shapes(lm, path, type(own), {part: getattr(own, part) for part in own.PARTS})
        if not own.fits(lm.model.get_submodule(path)):
            raise PastoError(
                f"wrong base: {path} of {source} is not the weight that the adapter was made for",
                "Name the right one: --base.",
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
            "wrong base: the reference names tokens that this vocabulary lacks",
            "Load the base that the adapter names.",
        )
    now = reference_logits(lm, adapter, meta.reference.token_ids)
    exact = (
        _same_storage(lm, meta.base)
        and lm.dtype == torch.float32
        and lm.spec.quantization == "none"
    )
    for coefficient, then in meta.reference.logits.items():
        expected, got = torch.tensor(then), torch.tensor(now.logits[coefficient])
        # In float32 only the order of sums differs; half precision and quantisers round.
        tolerance = (2e-3 if exact else 1e-1) * expected.abs().max().clamp_min(1.0)
        error = found[coefficient] = (expected - got).abs().max().item()
        if not error <= tolerance:  # so that NaN is refused too
            raise PastoError(
                f"reference logits at coefficient {coefficient} differ by {error:.3g} from those "
                f"stored with the adapter",
                "The base or a library behaves differently here; see versions in pasto.json, or "
                "use --no-verify.",
            )
    return found
