"""Residual writers: the Linear layers whose output is added to the residual stream.

    h <- h + W_O attention(...)        attention output projection
    h <- h + W_down mlp(...)           MLP down projection

They are found by exact module path, per architecture family. No regular expression runs over names:
a path either resolves inside a layer or it does not, so that nothing is adapted by accident.
Transformers' Conv1D (GPT-2) holds its weight transposed.

A new architecture is one line in the tables below.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError

# Where the list of decoder layers is, from the model.
LAYER_LISTS = (
    "model.layers",  # Llama, Mistral, Qwen, Gemma, Phi-3, ...
    "model.language_model.layers",  # text tower of a multimodal checkpoint
    "language_model.model.layers",
    "transformer.h",  # GPT-2, GPT-J, Falcon, Bloom
    "gpt_neox.layers",
    "model.decoder.layers",  # OPT
    "transformer.blocks",
)
# Where the writers are, from a layer.
ATTENTION_WRITERS = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "attn.c_proj",
    "attn.out_proj",
    "attn.attention.out_proj",
    "attention.dense",
    "self_attention.dense",
    "linear_attn.out_proj",
)
MLP_WRITERS = (
    "mlp.down_proj",
    "mlp.c_proj",
    "mlp.fc2",
    "mlp.fc_out",
    "mlp.dense_4h_to_h",
    "fc2",
    "feed_forward.w2",
    "ffn.down_proj",
    "mlp.shared_expert.down_proj",
    "mlp.shared_experts.down_proj",
)
# Where experts stand as one parameter (experts, d_in, d_out), which is no Linear to adapt.
FUSED_EXPERTS = (
    "mlp.experts",
    "block_sparse_moe.experts",
    "block_sparse_moe.output_linear",
    "feed_forward.experts",
    "ffn.experts.mlp",
)


class Writer(NamedTuple):
    """One writer module."""

    path: str
    """Exact path from the model, such as `model.layers.3.mlp.down_proj`."""
    layer: int
    """Index of its layer."""
    module: nn.Module


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its path.

    Raises:
        PastoError: If none of the known paths exists.
    """
    for path in LAYER_LISTS:
        found = _resolve(model, path)
        if isinstance(found, nn.ModuleList):
            return path, found
    raise PastoError(
        f"{type(model).__name__}: no decoder layers found; looked for {', '.join(LAYER_LISTS)}",
        "pasto steers decoder-only language models; encoder and diffusion models have no dial.",
    )


def find_writers(model: nn.Module) -> list[Writer]:
    """All writers of a model, in order of depth.

    Raises:
        PastoError: If there is none, or if expert weights are fused into one parameter.
    """
    prefix, layers = decoder_layers(model)
    writers = []
    for index, layer in enumerate(layers):
        _refuse_fused_experts(layer, f"{prefix}.{index}")
        for path in ATTENTION_WRITERS + MLP_WRITERS:
            module = _resolve(layer, path)
            if isinstance(module, nn.Module) and is_linear(module):
                writers.append(Writer(f"{prefix}.{index}.{path}", index, module))
    if not writers:
        raise PastoError(
            f"{type(model).__name__}: no layer writes to the residual stream; looked in "
            f"{prefix}.N for {', '.join(ATTENTION_WRITERS + MLP_WRITERS)}",
            "Please report the architecture: a writer is one line in "
            "core/models/residual_writers.py.",
        )
    return writers


def _refuse_fused_experts(layer: nn.Module, name: str) -> None:
    """Raise a PastoError if a layer holds its experts in one parameter."""
    for path in FUSED_EXPERTS:
        experts = _resolve(layer, path)
        if experts is None:
            continue
        fused = [n for n, p in experts.named_parameters(recurse=False) if p.dim() == 3]
        if fused:
            raise PastoError(
                f"{name}.{path} holds its experts fused in one parameter ({', '.join(fused)})",
                "Mixture-of-experts models with fused experts cannot be adapted; choose a dense "
                "model.",
            )


def place_writers(
    writers: list[Writer], num_layers: int, first: float, last: float, max_modules: int
) -> list[Writer]:
    """Writers in layers [floor(first L), floor(last L)), at most `max_modules`, spread evenly.

    Raises:
        PastoError: If no writer lies there.
    """
    # AntiPaSTO (arXiv 2601.07473) adapts the layers before the depth at which its loss is measured.
    low, high = int(first * num_layers), int(last * num_layers)
    inside = [w for w in writers if low <= w.layer < high]
    if not inside:
        raise PastoError(
            f"no writer in layers {low} to {high - 1} of {num_layers}",
            "Widen adapter.first_layer and adapter.last_layer.",
        )
    if len(inside) <= max_modules:
        return inside
    if max_modules == 1:
        return [inside[len(inside) // 2]]
    step = (len(inside) - 1) / (max_modules - 1)
    return [inside[round(i * step)] for i in range(max_modules)]


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


def dense_weight(module: Any) -> Tensor:
    """The weight of a writer as float32 (d_out, d_in), dequantised where it is quantised.

    Raises:
        PastoError: For a quantiser that is not known.
    """
    weight = module.weight
    kind = type(weight).__name__
    if kind == "Params4bit":
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(weight.data, weight.quant_state).float()
    if kind == "Int8Params":
        # int8 rows with one absmax scale each; bitsandbytes moves it to the state on first use.
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * (scale.float() / 127.0)[:, None]
    if not torch.is_floating_point(weight):
        raise PastoError(
            f"{type(module).__name__} with {weight.dtype} weights: unknown quantiser",
            "Load the model unquantised, or with model.quantization: 4bit or 8bit.",
        )
    dense = weight.detach().float()
    return dense.T.contiguous() if is_conv1d(module) else dense


def _resolve(module: nn.Module, path: str) -> Any:
    """What stands at a dotted path, or None."""
    here: Any = module
    for part in path.split("."):
        here = getattr(here, part, None)
        if here is None:
            return None
    return here
