"""Loading a base model: Hub, folder, GGUF or random weights; quantised or not; on whatever device
there is.

A `LoadedModel` carries what the rest of the method needs of a model: the decoder, its layers, the
output head, its chat, and whether token trees are exact on it (checked once, when it is loaded).
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat, NoChat
from pasto_cli.core.models.devices import _dtype, pick_device
from pasto_cli.core.models.gguf import _dequantised, _file_in_package, _first_line
from pasto_cli.core.models.loaded import LoadedModel, Notify
from pasto_cli.core.models.random_models import build_random, byte_tokenizer
from pasto_cli.core.models.residual_writers import decoder_layers
from pasto_cli.core.recipe.schema import ModelSpec


def load_model(spec: ModelSpec, notify: Notify = lambda _: None) -> LoadedModel:
    """Load a base model as a recipe's `model` section says.

    Args:
        spec: Source, revision, quantisation, dtype, device.
        notify: Told of anything slow or worth knowing.

    Raises:
        PastoError: If the source is not a causal language model, cannot be reached, or does not
            hold all its weights.
    """
    _quiet_libraries()
    device = pick_device(spec.device)
    dtype = _dtype(spec, device)
    commit: str | None = None
    if spec.source.startswith("random:"):
        model, tokenizer = build_random(spec.source.removeprefix("random:"), spec.attention, dtype)
        if spec.quantization != "none":
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model, _ = _from_pretrained(folder, spec, dtype, device)
    else:
        folder, commit = _resolve_source(spec, notify)
        model, tokenizer = _from_pretrained(folder, spec, dtype, device)
        commit = commit or getattr(model.config, "_commit_hash", None)
    if spec.quantization == "none":
        try:
            model = model.to(device)
        except torch.OutOfMemoryError as error:
            raise _load_failure(spec, error) from None
    _plain_4bit_kernels(model)
    model.eval().requires_grad_(False)
    _, layers = decoder_layers(model)
    chat = Chat(tokenizer, spec.system) if tokenizer is not None else NoChat(spec.source)
    return LoadedModel(model, tokenizer, chat, spec, commit, layers)


def load_chat(spec: ModelSpec, notify: Notify = lambda _: None) -> Chat:
    """Only the tokenizer and chat template of a base model.

    Raises:
        PastoError: As `load_model`.
    """
    _quiet_libraries()
    if spec.source.startswith("random:"):
        return Chat(byte_tokenizer(), spec.system)
    from transformers import AutoTokenizer

    folder, _ = _resolve_source(spec, notify)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:
        raise _load_failure(spec, error) from None
    return Chat(tokenizer, spec.system)


def _resolve_source(spec: ModelSpec, notify: Notify) -> tuple[str, str | None]:
    """Folder or Hub id to load from, and an identity where the Hub gives none."""
    source = spec.source
    if source.startswith("package:"):
        source = str(_file_in_package(source.removeprefix("package:")))
    if source.endswith(".gguf"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise PastoError(f"{path}: no such GGUF file", "Check model.source in the recipe.")
        return _dequantised(path, notify)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).expanduser().is_dir():
        raise PastoError(
            f"{source}: no such folder",
            "Give a folder with config.json, a GGUF file or a Hub id (org/name).",
        )
    return (str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source), None


def _from_pretrained(
    source: str, spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any] = {
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
    }
    quantised = _quantization_config(spec.quantization, dtype)
    try:
        tokenizer = (
            AutoTokenizer.from_pretrained(source, **arguments) if _has_tokenizer(source) else None
        )
        arguments |= {"dtype": dtype, "output_loading_info": True}
        if quantised:
            arguments |= {"quantization_config": quantised, "device_map": {"": str(device)}}
        loaded: Any
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                source, attn_implementation=spec.attention, **arguments
            )
        except ValueError as error:
            if spec.attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise
            # Some architectures (Gemma 2) have no SDPA attention; eager takes tree masks as well.
            loaded = AutoModelForCausalLM.from_pretrained(
                source, attn_implementation="eager", **arguments
            )
    except Exception as error:
        raise _load_failure(spec, error) from None
    model, info = loaded
    if missing := sorted(set(info["missing_keys"])):
        raise PastoError(
            f"{spec.source}: {len(missing)} weights are not in the checkpoint and would be random: "
            f"{', '.join(missing[:3])}",
            "The checkpoint does not fit the architecture in its config.json; use another "
            "revision.",
        )
    return model, tokenizer


def _has_tokenizer(source: str) -> bool:
    """Whether a local folder holds a tokenizer; the Hub is believed."""
    folder = Path(source)
    return not folder.is_dir() or any(
        any(folder.glob(p)) for p in ("tokenizer*", "*vocab*", "spiece.model", "*.tiktoken")
    )


def _quantization_config(kind: str, dtype: torch.dtype) -> Any:
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
    later decomposition would be of noise."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_failure(spec: ModelSpec, error: Exception) -> PastoError:
    """What to tell a user whose model did not load, and what to do next."""
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    name = spec.source + (f"@{spec.revision}" if spec.revision else "")

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if any_of(hub.GatedRepoError):
        return PastoError(
            f"{name} is gated",
            f"Accept its licence on the model's page, then: hf auth login ({spec.source}).",
        )
    if any_of(hub.RevisionNotFoundError):
        return PastoError(
            f"{name}: the Hub has no such revision", "Check model.revision in the recipe."
        )
    if any_of(hub.RepositoryNotFoundError, hub.HFValidationError):
        return PastoError(
            f"{name}: neither a folder here nor a model on the Hub",
            "Check model.source for a typing mistake.",
        )
    text = " ".join(str(link) for link in chain)
    if (
        any_of(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
        or "connect" in text.lower()
    ):
        return PastoError(
            f"{name} is not in the local cache and the Hub cannot be reached",
            "Check the connection, or point model.source to a local folder or GGUF file.",
        )
    if any_of(MemoryError, torch.OutOfMemoryError):
        return PastoError(
            f"{name} does not fit into memory",
            "Use --set model.quantization=4bit or a smaller model.",
        )
    if "trust_remote_code" in text:
        return PastoError(
            f"{name} needs Python code of its own",
            "Read that code first; then set model.trust_remote_code: true.",
        )
    return PastoError(
        f"{name} is not a causal language model that can be loaded: {_first_line(error)}",
        "Check model.source.",
    )


def _quiet_libraries() -> None:
    """Keep stderr for what a user can act on: no progress bars or advice from the libraries
    below."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
