"""A dial at one coefficient for other engines: PEFT LoRA, llama.cpp's adapter GGUF, merged weights.

The change of a weight is exactly of rank r:

    dW(a) = U M(a)^T V^T = B A,   B = U M(a)^T (d_out, r),   A = V^T (r, d_in)

so that one LoRA for each coefficient says all there is, with alpha = r (scale 1). M(a) is not
linear in a: a LoRA of +1 that an engine scales by 0.5 or -1 is another adapter than the one of 0.5
or -1.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import is_conv1d
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.coefficients import per_row
from pasto_cli.core.steering.steerer import AdapterSteerer, Mix, Steerer

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
        path: LowRank(r.v.T.contiguous().cpu(), (r.u @ mix[0].T).contiguous().cpu())
        for (path, r), mix in zip(adapter.items(), mixing, strict=True)
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
    """A folder that stock `peft` (and engines that read its format) load: adapter_config.json,
    adapter_model.safetensors.

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


def save_merged(
    folder: Path, lm: LoadedModel, steerer: AdapterSteerer | Mix, coefficient: float
) -> None:
    """The whole model with the change inside its weights, as transformers saves it; a quantised
    base is dequantised first.

    Args:
        folder: An empty one.
        lm: The base model; one that was quantised is changed.
        steerer: Made for it.
        coefficient: Not 0.
    """
    if (
        getattr(lm.model, "hf_quantizer", None) is not None
    ):  # once, for the first of several coefficients
        lm.model = lm.model.dequantize()
    with steerer.baked(coefficient):
        lm.model.save_pretrained(folder)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(folder)


def save_gguf_lora(path: Path, lm: LoadedModel, factors: dict[str, LowRank]) -> None:
    """One file that llama.cpp loads with --lora: tensors NAME.lora_a (r, d_in) and NAME.lora_b
    (d_out, r).

    Raises:
        PastoError: If llama.cpp's own library does not know the architecture.
    """
    import gguf

    config = lm.model.config.get_text_config()
    names = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    known = {"gemma3_text": "gemma3", "llama": "llama", "mistral": "llama"}.get(
        config.model_type, config.model_type
    )
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
    """How far the low-rank change is from the dial: (largest difference of logits, largest logit)
    after a fixed prompt.
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
    return (got - expected).abs().max().item(), expected.abs().max().item()


def _add(factor: LowRank) -> Any:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + ((x @ factor.a.to(x).T) @ factor.b.to(x).T).to(output.dtype)

    return add
