"""Where a model runs and in which precision.

Weights are in the dtype of the recipe (`auto`: bfloat16 on a GPU that computes in it). Under
`layer_precision` the layers of a float32 model run in bfloat16, while the adapter's parameters, the
losses and the logits stay in float32.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import ModelSpec

BALANCED = "balanced"
"""The device of a model that is spread over several."""


@contextlib.contextmanager
def layer_precision(lm: LoadedModel, precision: str) -> Iterator[bool]:
    """Run the layers of a float32 model in bfloat16 in this context, if recipe or processor say so.

    Args:
        lm: The model.
        precision: `training.precision` or `evaluation.precision` of the recipe.

    Yields:
        Whether bfloat16 autocast is on.
    """
    before, lm.autocast = lm.autocast, runs_low(lm.device, lm.dtype, precision)
    try:
        yield lm.autocast
    finally:
        lm.autocast, lm.low_head, lm.low_weights = before, None, {}


def runs_low(device: torch.device, dtype: torch.dtype, precision: str) -> bool:
    """Whether the layers of a model with weights of a dtype run in bfloat16 on a device.

    Args:
        device: Of this machine.
        dtype: Of the weights.
        precision: `training.precision` or `evaluation.precision` of the recipe.
    """
    # Without units for it bfloat16 is emulated, which is slower than float32.
    native = _cuda_has_bfloat16(device) or _cpu_has_bfloat16(device)
    return dtype == torch.float32 and (precision == "bfloat16" or (precision == "auto" and native))


def _cuda_has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` takes cuda, then mps, then cpu.

    For `balanced` it is the first of them, where the embeddings stand.

    Raises:
        PastoError: If it is not there.
    """
    if name in ("auto", BALANCED):
        return next(
            device for device in map(torch.device, ("cuda", "mps", "cpu")) if _there(device)
        )
    device = torch.device(name)
    if not _there(device):
        raise PastoError(
            f"model.device is {name}, but this machine has none",
            "Write device: auto, or --set model.device=cpu.",
        )
    return device


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device of this machine has; None where that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system has these names
        return None


def _there(device: torch.device) -> bool:
    """Whether this machine has a device."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or torch.backends.mps.is_available()


def pick_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Dtype of the weights as a recipe says; `auto` is float32 where bfloat16 would be emulated."""
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    return torch.bfloat16 if _cuda_has_bfloat16(device) or device.type == "mps" else torch.float32
