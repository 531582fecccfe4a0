"""Where a model runs and in which precision."""

import contextlib
from collections.abc import Iterator

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import ModelSpec


@contextlib.contextmanager
def training_precision(lm: LoadedModel, precision: str) -> Iterator[bool]:
    """Run the layers of a float32 model in bfloat16 inside this context, if the recipe or the
    processor says so.

    Args:
        lm: The model.
        precision: `training.precision` of the recipe.

    Yields:
        Whether bfloat16 autocast is on.
    """
    native = _cuda_has_bfloat16(lm.device) or (
        lm.device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16()
    )
    wanted = precision == "bfloat16" or (precision == "auto" and native)
    before, lm.autocast = lm.autocast, wanted and lm.dtype == torch.float32
    try:
        yield lm.autocast
    finally:
        lm.autocast, lm.low_head = before, None


def _cuda_has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` takes cuda, then mps, then cpu.

    Raises:
        PastoError: If it is not there.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    device = torch.device(name)
    there = {
        "cuda": lambda: (
            torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
        ),
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }[device.type]()
    if not there:
        raise PastoError(
            f"model.device is {name}, but this machine has none",
            "Write device: auto, or --set model.device=cpu.",
        )
    return device


def _dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    if spec.dtype == "auto":
        return (
            torch.bfloat16 if _cuda_has_bfloat16(device) or device.type == "mps" else torch.float32
        )
    return getattr(torch, spec.dtype)
