"""What bitsandbytes' 4-bit layers need before they can be believed."""

from functools import cache
from typing import Any

import torch

from pasto_cli.base.errors import PastoError

BLOCK = 64
"""Numbers that share a scale."""
LARGEST_ERROR = 0.15
"""Relative error of a normally distributed matrix; NF4 has 0.09, noise 1.4."""


def check_round_trip(model: Any) -> None:
    """Refuse a model whose 4-bit weights this machine would not give back.

    bitsandbytes 0.50.2 takes some rows that are not whole blocks apart wrongly on processors with
    AVX512: those whose length is an odd multiple of 32 (relative error 0.24 to 0.40), so that
    layers would compute with other weights than the model's. A width is tried, not looked up: what
    is wrong is a matter of the version and the processor.

    Raises:
        PastoError: With the width of such rows.
    """
    found = {
        (module.in_features, module.weight.device.type)
        for module in model.modules()
        if type(getattr(module, "weight", None)).__name__ == "Params4bit"
        and module.in_features % BLOCK
    }
    for width, device in sorted(found):
        error = round_trip_error(width, device)
        if error > LARGEST_ERROR:
            raise PastoError(
                f"bitsandbytes reads 4-bit weights wrongly on this {device} where rows are {width} "
                f"long, no multiple of {BLOCK} (relative error {error:.2f}, not 0.09)",
                "Load the model unquantised, or with model.quantization: 8bit; if the repository "
                "holds 4-bit weights, take the one with plain weights.",
            )


@cache
def round_trip_error(width: int, device: str) -> float:
    """Relative error of a random matrix (64, width) after 4-bit quantisation and back.

    Of one row alone bitsandbytes gives the right numbers back, whatever its length.
    """
    from bitsandbytes import functional

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, width, generator=generator).to(device)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    back = functional.dequantize_4bit(packed, state)
    return float((back - weight).norm() / weight.norm())


def plain_kernels(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on the first inference on a CPU.

    The packed kernel rounds to bfloat16, so that a prompt's logits would depend on what else is in
    the batch (0.5 of 38 on SmolLM2-135M), and `dequantize_4bit` does not know its layout, so that a
    later decomposition would be of noise.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
