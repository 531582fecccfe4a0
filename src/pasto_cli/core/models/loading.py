"""Loading a base model as a recipe's `model` section says.

    random:NAME            random weights (`random_models`)
    package:NAME/FILE      a GGUF file inside an installed Python package
    hf:ORG/NAME/FILE       a GGUF file of a repository on the Hub
    FILE.gguf              a GGUF file (`gguf`)
    FOLDER                 a folder with config.json
    org/name               a repository on the Hub

Whether token trees are exact on it is settled afterwards, by `forward.settle_packing`.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_ids import looks_like_path
from pasto_cli.core.models.chat import Chat, NoChat
from pasto_cli.core.models.devices import pick_device, pick_dtype
from pasto_cli.core.models.gguf import dequantised, file_in_package, file_on_hub
from pasto_cli.core.models.load_errors import load_failure
from pasto_cli.core.models.loaded import LoadedModel, Notify
from pasto_cli.core.models.random_models import build_random, byte_tokenizer
from pasto_cli.core.models.residual_writers import decoder_layers
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
    _quiet_libraries()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec, device)
    commit: str | None = None
    if spec.source.startswith("random:"):
        model, tokenizer = build_random(spec.source.removeprefix("random:"), spec.attention, dtype)
        if spec.quantization != "none":  # bitsandbytes quantises while it reads a checkpoint
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model, _ = _from_pretrained(folder, spec, dtype, device)
    else:
        folder, commit = resolve_source(spec, notify)
        model, tokenizer = _from_pretrained(folder, spec, dtype, device)
        commit = commit or getattr(model.config, "_commit_hash", None)
    if spec.quantization == "none":  # a quantised one is on its device already, and cannot move
        try:
            model = model.to(device)
        except torch.OutOfMemoryError as error:
            raise load_failure(spec, error) from None
    _plain_4bit_kernels(model)
    model.eval().requires_grad_(False)
    _, layers = decoder_layers(model)
    chat = Chat(tokenizer, spec.system) if tokenizer is not None else NoChat(spec.source)
    return LoadedModel(model, tokenizer, chat, spec, commit, layers)


def load_chat(spec: ModelSpec, notify: Notify = lambda _: None) -> Chat:
    """Only the tokenizer and chat template of a base model, for work that needs no weights.

    Raises:
        PastoError: As `load_model`.
    """
    _quiet_libraries()
    if spec.source.startswith("random:"):
        return Chat(byte_tokenizer(), spec.system)
    from transformers import AutoTokenizer

    folder, _ = resolve_source(spec, notify)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:
        raise load_failure(spec, error) from None
    return Chat(tokenizer, spec.system)


def load_skeleton(spec: ModelSpec, notify: Notify = lambda _: None) -> LoadedModel:
    """A base model without its weights: modules on the meta device, tokenizer and template.

    It takes no memory to speak of, and is enough to export what stands in an adapter. A random
    model is loaded whole, since it has no files.

    Raises:
        PastoError: As `load_model`.
    """
    if spec.source.startswith("random:"):
        return load_model(spec, notify)
    from transformers import AutoConfig, AutoModelForCausalLM

    chat = load_chat(spec, notify)
    folder, commit = resolve_source(spec, notify)
    try:
        config = AutoConfig.from_pretrained(
            folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:
        raise load_failure(spec, error) from None
    model.eval().requires_grad_(False)
    _, layers = decoder_layers(model)
    return LoadedModel(model, chat.tokenizer, chat, spec, commit, layers)


def resolve_source(spec: ModelSpec, notify: Notify) -> tuple[str, str | None]:
    """Folder or Hub id to load from, and an identity where the Hub gives none.

    Raises:
        PastoError: If there is no such model here, or it cannot be fetched.
    """
    if (file := gguf_file(spec)) is not None:
        return dequantised(file, notify)
    source = spec.source
    if source.startswith("package:"):
        source = str(file_in_package(source.removeprefix("package:")))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder), None
    if looks_like_path(source):  # never looked up on the network
        raise PastoError(
            f"{source}: no such folder",
            "Give a folder with config.json, a GGUF file or a Hub id (org/name).",
        )
    return source, None


def gguf_file(spec: ModelSpec) -> Path | None:
    """The GGUF file that a base comes from; None where it is no such file.

    Raises:
        PastoError: If the file is not here and cannot be fetched.
    """
    source = spec.source
    if source.startswith("package:"):
        source = str(file_in_package(source.removeprefix("package:")))
    if source.startswith("hf:"):
        try:
            source = str(file_on_hub(source.removeprefix("hf:"), spec.revision))
        except PastoError:
            raise
        except Exception as error:
            raise load_failure(spec, error) from None
    if not source.endswith(".gguf"):
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        raise PastoError(f"{path}: no such GGUF file", "Check model.source in the recipe.")
    return path


def _from_pretrained(
    source: str, spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    """Model and tokenizer (None where there is none) of a folder or Hub id."""
    from transformers import AutoTokenizer

    which = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    arguments: dict[str, Any] = which | {"dtype": dtype, "output_loading_info": True}
    if quantised := _quantization_config(spec.quantization, dtype):
        arguments |= {"quantization_config": quantised, "device_map": {"": str(device)}}
    try:
        has_tokenizer = _has_tokenizer(source)
        tokenizer = AutoTokenizer.from_pretrained(source, **which) if has_tokenizer else None
        model, info = _with_attention(source, spec.attention, arguments)
    except Exception as error:
        raise load_failure(spec, error) from None
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


def _plain_4bit_kernels(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on the first inference on a CPU.

    The packed kernel rounds to bfloat16, so that a prompt's logits would depend on what else is in
    the batch (0.5 of 38 on SmolLM2-135M), and `dequantize_4bit` does not know its layout, so that a
    later decomposition would be of noise.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quiet_libraries() -> None:
    """Keep stderr for what a user can act on: no progress bars or advice from libraries."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
