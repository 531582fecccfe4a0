"""Models that are published quantised: what is done with each format.

bitsandbytes     stays as it is; writers are dequantised with their scales
fp8, mxfp4       stays as it is where its kernels are to be had, on a GPU; else it is
                 dequantised, with its scales, while it is read
all others       (awq, gptq, compressed-tensors, ...) are refused by name
"""

import importlib.util
from typing import Any, NamedTuple

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import PLAIN_BASE
from pasto_cli.core.recipe.schema import ModelSpec

DEQUANTISED = ("fp8", "mxfp4")


class Published(NamedTuple):
    """How a checkpoint is quantised."""

    method: str
    """Name of the format; empty for plain weights."""
    bits: str = ""
    """`4bit` or `8bit` for bitsandbytes."""


def published(config: Any) -> Published:
    """How the weights of a configuration are quantised."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(), "quantization_config", None)
    if found is None:
        return Published("")
    facts = found if isinstance(found, dict) else found.to_dict()
    method = str(facts.get("quant_method") or "").lower()
    if facts.get("load_in_4bit"):
        return Published("bitsandbytes", "4bit")
    if facts.get("load_in_8bit"):
        return Published("bitsandbytes", "8bit")
    return Published(method or "unknown")


def loading_arguments(found: Published, spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given beside its usual arguments.

    Raises:
        PastoError: For a format that cannot be taken apart, or one that the recipe would quantise
            once more.
    """
    if not found.method:
        return {}
    if found.method == "bitsandbytes":
        if spec.quantization not in ("none", found.bits):
            raise PastoError(
                f"{spec.source} is published in {found.bits}, model.quantization is "
                f"{spec.quantization}",
                "Remove model.quantization.",
            )
        return {"device_map": {"": str(device)}}
    if found.method not in DEQUANTISED:
        raise PastoError(
            f"{spec.source} is published quantised ({found.method}), a format whose weights pasto "
            f"cannot take apart",
            PLAIN_BASE,
        )
    if spec.quantization != "none":
        raise PastoError(
            f"{spec.source} is published in {found.method}: it cannot be quantised once more",
            "Remove model.quantization, or use the repository of this model with plain weights.",
        )
    if device.type == "cuda" and importlib.util.find_spec("kernels") is not None:
        return {"device_map": {"": str(device)}}
    return {"quantization_config": _dequantising(found.method)}


def _dequantising(method: str) -> Any:
    """Transformers' configuration that turns weights into plain ones while they are read."""
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    # What it says beside `dequantize` is taken from the checkpoint.
    return (
        FineGrainedFP8Config(dequantize=True) if method == "fp8" else Mxfp4Config(dequantize=True)
    )


def as_plain(model: Any) -> None:
    """Take the mark off a model that it came from quantised weights, once they are plain ones."""
    model.hf_quantizer, model.is_quantized = None, False
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
