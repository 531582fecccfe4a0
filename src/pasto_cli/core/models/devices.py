"""Where a model runs and in which precision.

Weights are in the dtype of the recipe (`auto`: bfloat16 on a GPU that computes in it). Under
`layer_precision` the layers of a float32 model run in bfloat16, while the adapter's parameters, the
losses and the logits stay in float32.
"""

import contextlib
from collections.abc import Iterator

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import ModelSpec


@contextlib.contextmanager
def layer_precision(lm: LoadedModel, precision: str) -> Iterator[bool]:
    """Run the layers of a float32 model in bfloat16 in this context, if recipe or processor say so.

    Args:
        lm: The model.
        precision: `training.precision` or `evaluation.precision` of the recipe.

    Yields:
        Whether bfloat16 autocast is on.
    """
    # Without units for it bfloat16 is emulated, which is slower than float32.
    native = _cuda_has_bfloat16(lm.device) or _cpu_has_bfloat16(lm.device)
    wanted = precision == "bfloat16" or (precision == "auto" and native)
    before, lm.autocast = lm.autocast, wanted and lm.dtype == torch.float32
    try:
        yield lm.autocast
    finally:
        lm.autocast, lm.low_head = before, None


def _cuda_has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` takes cuda, then mps, then cpu.

    Raises:
        PastoError: If it is not there.
    """
    if name == "auto":
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
