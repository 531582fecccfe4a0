"""A dial at one coefficient for other engines: PEFT LoRA, llama.cpp's adapter GGUF, merged weights.

The change of a weight is exactly of rank r (D, M(a), E: see `steering.adapter`):

    dW(a) = E^T M(a)^T D^T = B A,   B = E^T M(a)^T (d_out, r),   A = D^T (r, d_in)

so that one LoRA for each coefficient says all there is, with alpha = r (scale 1). M(a) of a Cayley
rotation is not linear in a: a LoRA of +1 that an engine scales by 0.5 or -1 is another adapter than
the one of 0.5 or -1. Of the kind lora it is, and one export serves any coefficient by its scale.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import is_conv1d
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import decoder_layers
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.coefficients import per_row
from pasto_cli.core.steering.overflow import require_true_logits
from pasto_cli.core.steering.steerer import Steerer

LORA_TENSORS = "adapter_model.safetensors"
LORA_CONFIG = "adapter_config.json"


class LowRank(NamedTuple):
    """The change of one module: dW = b a."""

    a: Tensor
    """(r, d_in) float32, cpu."""
    b: Tensor
    """(d_out, r) float32, cpu."""


@torch.no_grad()
def low_rank(adapter: Adapter, coefficient: float) -> dict[str, LowRank]:
    """Module path -> the change that a coefficient makes.

    Raises:
        PastoError: At coefficient 0, which changes nothing, and for what is not a finite number.
    """
    per_row(coefficient)
    if coefficient == 0.0:
        raise PastoError(
            "coefficient 0 is the base model: there is nothing to export", "Leave it out."
        )
    mixing = adapter.mixing([coefficient])
    return {
        path: LowRank(own.down.T.contiguous().cpu(), (own.up.T @ mix[0].T).contiguous().cpu())
        for (path, own), mix in zip(adapter.items(), mixing, strict=True)
    }


def joined(parts: Sequence[dict[str, LowRank]]) -> dict[str, LowRank]:
    """The sum of several changes: dW = (B_1 B_2) (A_1; A_2), ranks add."""
    paths = dict.fromkeys(path for part in parts for path in part)
    found = {}
    for path in paths:
        each = [part[path] for part in parts if path in part]
        found[path] = LowRank(torch.cat([x.a for x in each]), torch.cat([x.b for x in each], dim=1))
    return found


def save_lora(folder: Path, lm: LoadedModel, factors: dict[str, LowRank]) -> None:
    """A folder that stock `peft` loads, and every engine that reads its format.

    Args:
        folder: An empty one.
        lm: The base model.
        factors: From `low_rank`.
    """
    tensors = {}
    for path, factor in factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = factor.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = factor.b
    ranks = {path: len(factor.a) for path, factor in factors.items()}
    rank = max(ranks.values())
    # peft scales a module by alpha over its rank: both deviate together, and the scale stays 1.
    other = {path: r for path, r in ranks.items() if r != rank}
    transposed = any(is_conv1d(lm.model.get_submodule(path)) for path in factors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.spec.source,
        "revision": lm.spec.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": list(factors),
    }
    save_file(tensors, folder / LORA_TENSORS, {"format": "pt"})
    (folder / LORA_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def dequantised(lm: LoadedModel) -> LoadedModel:
    """The base with plain weights, for `save_merged`; `lm` itself where nothing is quantised.

    transformers dequantises in place, since both sets of weights at once may not fit into memory:
    a quantised `lm` is used up, and only what is returned may be used afterwards.

    Raises:
        PastoError: If transformers cannot dequantise this format.
    """
    if getattr(lm.model, "hf_quantizer", None) is None:
        return lm
    try:
        model = lm.model.dequantize()
    except NotImplementedError:
        method = type(lm.model.hf_quantizer).__name__.removesuffix("HfQuantizer")
        raise PastoError(
            f"the weights of this base cannot be written out ({method})", "Use --format lora."
        ) from None
    _, layers = decoder_layers(model)
    spec = lm.spec.model_copy(update={"quantization": "none"})
    return replace(lm, model=model, layers=layers, spec=spec)


def save_merged(folder: Path, lm: LoadedModel, turned: Sequence[tuple[Adapter, float]]) -> None:
    """The whole model with the changes inside its weights, as transformers saves it.

    Args:
        folder: An empty one.
        lm: The base model, not quantised (see `dequantised`); it is as before afterwards.
        turned: Adapters with their coefficients; their changes add up.

    Raises:
        PastoError: If the base is quantised.
    """
    with ExitStack() as stack:
        for adapter, coefficient in turned:
            stack.enter_context(adapter.baked(lm.model, coefficient))
        lm.model.save_pretrained(folder)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(folder)


def save_gguf_lora(path: Path, lm: LoadedModel, factors: dict[str, LowRank]) -> None:
    """One file that llama.cpp loads with --lora.

    Its tensors: NAME.lora_a (r, d_in) and NAME.lora_b (d_out, r), by llama.cpp's names of modules.

    Raises:
        PastoError: If llama.cpp's own library does not know the architecture.
    """
    import gguf

    config = lm.model.config.get_text_config()
    names = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    # Where llama.cpp has another name for an architecture than transformers.
    known = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config.model_type, config.model_type)
    if known not in names:
        raise PastoError(
            f"llama.cpp has no architecture for {config.model_type}", "Use --format lora or merged."
        )
    to_gguf = gguf.get_tensor_name_map(names[known], len(lm.layers))
    alpha = max(len(factor.a) for factor in factors.values())
    writer = gguf.GGUFWriter(path, known)
    writer.add_string(gguf.Keys.General.TYPE, gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for module, factor in factors.items():
        name = to_gguf.get_name(f"{module}.weight", (".weight",))
        if name is None:
            raise PastoError(
                f"llama.cpp has no name for {module} of {config.model_type}",
                "Use --format lora or merged.",
            )
        writer.add_tensor(f"{name}.lora_a", factor.a.numpy())
        # llama.cpp scales each module by alpha over its own rank.
        writer.add_tensor(f"{name}.lora_b", (factor.b * (len(factor.a) / alpha)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def largest_difference(
    lm: LoadedModel, steerer: Steerer, coefficient: float, factors: dict[str, LowRank]
) -> tuple[float, float]:
    """(largest difference of logits to the dial's, largest logit) after a fixed prompt.

    Raises:
        PastoError: If the logits are none: zeros would differ from zeros by nothing.
    """
    ids = torch.tensor([lm.fixed_prompt("Say one word.")], device=lm.device)
    with steerer.at(coefficient):
        expected = lm.model(input_ids=ids).logits.float()
    handles = [
        lm.model.get_submodule(path).register_forward_hook(_add(factor))
        for path, factor in factors.items()
    ]
    try:
        got = lm.model(input_ids=ids).logits.float()
    finally:
        for handle in handles:
            handle.remove()
    for logits in (expected, got):
        require_true_logits(logits[:, -1], [coefficient])
    return (got - expected).abs().max().item(), expected.abs().max().item()


def _add(factor: LowRank) -> Any:
    """Forward hook that adds x A^T B^T to a module's output, as LoRA engines compute it."""

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]  # (..., d_in)
        return output + ((x @ factor.a.to(x).T) @ factor.b.to(x).T).to(output.dtype)

    return add
