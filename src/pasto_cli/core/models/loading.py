"""Loading a base model as a recipe's `model` section says; where it comes from: `sources`.

Whether token trees are exact on it is settled afterwards, by `forward.settle_packing`.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import writing
from pasto_cli.core.models import four_bit
from pasto_cli.core.models.chat import Chat, Limits, NoChat
from pasto_cli.core.models.devices import BALANCED, pick_device, pick_dtype
from pasto_cli.core.models.linears import is_plain
from pasto_cli.core.models.load_errors import load_failure
from pasto_cli.core.models.loaded import LoadedModel, Notify
from pasto_cli.core.models.published_quantization import (
    DEQUANTISED,
    as_plain,
    loading_arguments,
    published,
)
from pasto_cli.core.models.quiet import quiet_libraries
from pasto_cli.core.models.random_models import build_random, byte_tokenizer
from pasto_cli.core.models.residual_writers import decoder_layers
from pasto_cli.core.models.sources import Found, resolve_source
from pasto_cli.core.models.spread import is_spread_out, spread_out
from pasto_cli.core.recipe.schema import ModelSpec


def load_model(spec: ModelSpec, notify: Notify = lambda _: None) -> LoadedModel:
    """Load a base model as a recipe's `model` section says.

    Args:
        spec: The recipe's section: source, revision, quantisation, dtype, device.
        notify: Told of anything slow or worth knowing.

    Raises:
        PastoError: If the source is not a causal language model, cannot be reached, or does not
            hold all its weights.
    """
    quiet_libraries()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec, device)
    found = Found() if spec.source.startswith("random:") else resolve_source(spec, notify)
    commit = found.commit
    if found.source is not None:
        model, tokenizer = _from_pretrained(found.source, spec, dtype, device, notify)
        commit = commit or getattr(model.config, "_commit_hash", None)
    else:
        model, tokenizer = found.loaded or build_random(
            spec.source.removeprefix("random:"), spec.attention, dtype
        )
        model = _as_asked(model, spec, dtype, device, notify)
    check_finite(model, spec.source)
    if bits := published(model.config).bits:  # published so: the recipe need not say it
        spec = spec.model_copy(update={"quantization": bits})
    if spec.device == BALANCED and found.source is None:
        model = spread_out(model)
    # A quantised one, and one that is spread out, is where it should be already.
    if getattr(model, "hf_quantizer", None) is None and not is_spread_out(model):
        try:
            model = model.to(device)
        except torch.OutOfMemoryError as error:
            raise load_failure(spec, error) from None
    four_bit.check_round_trip(model)
    four_bit.plain_kernels(model)
    model.eval().requires_grad_(False)
    _, layers = decoder_layers(model)
    if tokenizer is None:
        chat = NoChat(spec.source)
    else:
        chat = Chat(tokenizer, spec.system, _limits(model))
    return LoadedModel(model, tokenizer, chat, spec, commit, layers)


def _limits(model: Any) -> Limits:
    """How many tokens a model knows, and how many it takes."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    known = isinstance(positions, int) and positions > 0
    rows = model.get_input_embeddings().weight.shape[0]
    return Limits(rows, positions if known else None)


def check_finite(model: Any, name: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        PastoError: With the first weight that holds an infinity or NaN.
    """
    spoilt = [
        path
        for path, weight in model.named_parameters()
        # A sum in float32 needs no mask of the size of the weight.
        if is_plain(weight) and not bool(weight.detach().sum(dtype=torch.float32).isfinite())
    ]
    if spoilt:
        more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
        raise PastoError(
            f"{name}: the weights of {spoilt[0]}{more} hold numbers that are not finite (NaN or "
            f"infinity)",
            "The checkpoint is damaged: download it again, or take another revision.",
        )


def load_chat(spec: ModelSpec, notify: Notify = lambda _: None) -> Chat:
    """Only the tokenizer and chat template of a base model, for work that needs no weights.

    Raises:
        PastoError: As `load_model`.
    """
    quiet_libraries()
    if spec.source.startswith("random:"):
        return Chat(byte_tokenizer(), spec.system)
    from transformers import AutoTokenizer

    found = resolve_source(spec, notify)
    if found.loaded is not None:
        return Chat(found.loaded[1], spec.system)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            found.source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:
        raise load_failure(spec, error) from None
    return Chat(tokenizer, spec.system)


def load_skeleton(spec: ModelSpec, notify: Notify = lambda _: None) -> LoadedModel:
    """A base model without its weights: modules on the meta device, tokenizer and template.

    It takes no memory to speak of, and is enough to export what stands in an adapter. Where there
    are no files (a random model, or one that was read into memory) it is loaded whole.

    Raises:
        PastoError: As `load_model`.
    """
    quiet_libraries()
    found = Found() if spec.source.startswith("random:") else resolve_source(spec, notify)
    if found.source is None:
        return load_model(spec, notify)
    from transformers import AutoConfig, AutoModelForCausalLM

    chat = load_chat(spec, notify)
    try:
        config = AutoConfig.from_pretrained(
            found.source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:
        raise load_failure(spec, error) from None
    model.eval().requires_grad_(False)
    _, layers = decoder_layers(model)
    return LoadedModel(model, chat.tokenizer, chat, spec, found.commit, layers)


def _as_asked(
    model: Any, spec: ModelSpec, dtype: torch.dtype, device: torch.device, notify: Notify
) -> Any:
    """A model that is in memory, in the recipe's dtype, attention and quantisation."""
    if spec.quantization == "none":
        with contextlib.suppress(ValueError):  # some have eager attention only, see below
            model.set_attn_implementation(spec.attention)
        return model.to(dtype)
    # bitsandbytes quantises while it reads a checkpoint.
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
        model.save_pretrained(folder)
        return _from_pretrained(folder, spec, dtype, device, notify)[0]


def _from_pretrained(
    source: str, spec: ModelSpec, dtype: torch.dtype, device: torch.device, notify: Notify
) -> tuple[Any, Any]:
    """Model and tokenizer (None where there is none) of a folder or Hub id."""
    from transformers import AutoConfig, AutoTokenizer

    which = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    arguments: dict[str, Any] = which | {"dtype": dtype, "output_loading_info": True}
    if quantised := _quantization_config(spec.quantization, dtype):
        arguments |= {"quantization_config": quantised, "device_map": {"": str(device)}}
    if spec.device == BALANCED:
        arguments["device_map"] = BALANCED
    try:
        was = published(AutoConfig.from_pretrained(source, **which))
        arguments |= loading_arguments(was, spec, device)
        has_tokenizer = _has_tokenizer(source)
        tokenizer = AutoTokenizer.from_pretrained(source, **which) if has_tokenizer else None
        model, info = _with_attention(source, spec.attention, arguments)
    except Exception as error:
        raise load_failure(spec, error) from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PastoError(
            f"{spec.source} is a LoRA adapter, not a model of its own",
            "Give its base model, or the folder of the merged weights.",
        )
    if was.method in DEQUANTISED and "quantization_config" in arguments:
        as_plain(model)
        notify(f"published in {was.method}: dequantised to {str(dtype).removeprefix('torch.')}")
    # transformers fills what a checkpoint lacks with random numbers and only logs it.
    if missing := sorted(set(info["missing_keys"])):
        raise PastoError(
            f"{spec.source}: {len(missing)} weights are not in the checkpoint and would be random: "
            f"{', '.join(missing[:3])}",
            "The checkpoint does not fit the architecture in its config.json; use another "
            "revision.",
        )
    return model, tokenizer


def _with_attention(source: str, attention: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The model and its loading info; with eager attention where the one asked for is missing."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        return load(source, attn_implementation=attention, **arguments)
    except ValueError as error:
        if attention == "eager" or "scaled_dot_product_attention" not in str(error):
            raise
    # Some architectures (Gemma 2) have no SDPA attention; eager takes tree masks as well.
    return load(source, attn_implementation="eager", **arguments)


def _has_tokenizer(source: str) -> bool:
    """Whether a local folder holds a tokenizer; the Hub is believed."""
    folder = Path(source)
    return not folder.is_dir() or any(
        any(folder.glob(p)) for p in ("tokenizer*", "*vocab*", "spiece.model", "*.tiktoken")
    )


def _quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """Configuration of bitsandbytes for transformers, or None for `none`."""
    if kind == "none":
        return None
    try:
        from transformers import BitsAndBytesConfig

        if kind == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    except ImportError:
        raise PastoError(
            "model.quantization needs bitsandbytes", "Install it: pip install bitsandbytes."
        ) from None
