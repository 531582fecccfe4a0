"""Linear modules: which are some, how large they are, and their weights as plain matrices.

A quantised weight is worth nothing without its scale:

    bitsandbytes 4-bit    blocks with a state of their own; bitsandbytes takes them apart
    bitsandbytes 8-bit    W = int8 * absmax / 127, one absmax for each row
    float8                W = float8 * scale: one scale for all, for each row, or for each block

What is quantised in another way is refused, and never taken as it stands.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.spread import weight_here

# Both multiply, whatever the name of the first says.
SCALES = ("weight_scale_inv", "weight_scale")
PLAIN_BASE = "Use the repository of this model with plain weights, and model.quantization: 4bit."


def is_conv1d(module: Any) -> bool:
    """Whether a module is transformers' Conv1D (GPT-2), whose weight is (d_in, d_out).

    Known by its name: importing the class would load transformers for every caller.
    """
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Linear (bitsandbytes' subclasses too) or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def linear_sizes(module: Any) -> tuple[int, int]:
    """(d_in, d_out) of a linear module."""
    if is_conv1d(module):
        return tuple(module.weight.shape)
    return module.in_features, module.out_features


def is_plain(weight: Tensor) -> bool:
    """Whether a weight holds its own numbers: floating point of two bytes or more."""
    return torch.is_floating_point(weight) and weight.element_size() > 1


def dense_weight(module: Any) -> Tensor:
    """The weight of a writer as float32 (d_out, d_in), dequantised where it is quantised.

    Raises:
        PastoError: For a quantiser that is not known, or a weight without its scale.
    """
    with weight_here(module):
        return _dense(module)


def _dense(module: Any) -> Tensor:
    weight: Any = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit":
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(weight.data, weight.quant_state).float()
    if kind == "Int8Params":
        # int8 rows with one absmax scale each; bitsandbytes moves it to the state on first use.
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * (scale.float() / 127.0)[:, None]
    if not isinstance(weight, Tensor) or not torch.is_floating_point(weight):
        held = f"{weight.dtype} weights" if isinstance(weight, Tensor) else "packed weights"
        raise PastoError(
            f"{type(module).__name__} with {held}: unknown quantiser",
            "Load the model unquantised, or with model.quantization: 4bit or 8bit.",
        )
    if not is_plain(weight):
        return _scaled(module, weight.detach())
    dense = weight.detach().float()
    return dense.T.contiguous() if is_conv1d(module) else dense


def _scaled(module: Any, weight: Tensor) -> Tensor:
    """A float8 weight (d_out, d_in) times its scale, float32."""
    scale = next((s for s in (getattr(module, n, None) for n in SCALES) if s is not None), None)
    if scale is None:
        raise PastoError(
            f"{type(module).__name__} holds {weight.dtype} weights without a scale", PLAIN_BASE
        )
    dense, factor = weight.float(), _scale_numbers(scale.detach())
    if factor.numel() == 1:
        return dense * factor.reshape(())
    if factor.dim() == 1:
        factor = factor[:, None]  # one for each row
    # (rows of blocks, columns of blocks); blocks at the right and lower edge may be smaller.
    own = getattr(module, "block_size", None)
    sizes = list(own or (-(-d // n) for d, n in zip(dense.shape, factor.shape, strict=True)))
    fits = own or all(d % n == 0 for d, n in zip(dense.shape, factor.shape, strict=True))
    blocks = [-(-d // size) for d, size in zip(dense.shape, sizes, strict=True)]
    if not fits or blocks != list(factor.shape):
        raise PastoError(
            f"{type(module).__name__}: scales {tuple(factor.shape)} do not fit weights "
            f"{tuple(dense.shape)}",
            PLAIN_BASE,
        )
    for dim, size in enumerate(sizes):
        factor = factor.repeat_interleave(size, dim)
    return dense * factor[: dense.shape[0], : dense.shape[1]]


def _scale_numbers(scale: Tensor) -> Tensor:
    """Scales as float32; in single bytes they are exponents of two (E8M0)."""
    if scale.dtype == torch.uint8:
        return (scale.float() - 127.0).exp2()
    return scale.float()
