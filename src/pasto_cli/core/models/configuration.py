"""What is known of a base model before its weights are here: its configuration, and their size.

random:NAME            `random_models`
a GGUF file            its header, or the folder of its dequantised weights
FOLDER                 config.json and the files beside it
org/name               config.json and the headers of the safetensors files, a few kilobytes; off
                       the network, those of the cache, or a configuration beside the recipe
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_ids import looks_like_path
from pasto_cli.base.hub_reach import prefer_cache_off_network
from pasto_cli.base.paths import expanded
from pasto_cli.core.models.gguf import dequantised_folder, file_in_package
from pasto_cli.core.models.load_errors import load_failure
from pasto_cli.core.models.quiet import quiet_libraries
from pasto_cli.core.models.random_models import random_config
from pasto_cli.core.recipe.schema import ModelSpec

BESIDE = ".config.json"
"""Ending of a configuration beside a recipe: instruct.yaml has instruct.config.json."""


class BaseFiles(NamedTuple):
    """What a base model is, and where its weights are."""

    config: Any
    """A configuration of transformers."""
    origin: str
    """Where the configuration was read."""
    stored: int | None
    """Bytes of the weights as they are stored; None where nobody told."""
    download: int | None
    """Bytes still to be fetched; None as above."""
    dequantise: bool = False
    """Whether a GGUF file has to be turned into a folder first."""


def base_files(spec: ModelSpec, recipe: Path | None = None) -> BaseFiles:
    """Find out what a base model is without loading it.

    Args:
        spec: The model section of a recipe.
        recipe: File of the recipe: a configuration may lie beside it.

    Raises:
        PastoError: If there is no such model, or nothing is known of it.
    """
    quiet_libraries()
    source = spec.source
    if source.startswith("random:"):
        config = random_config(source.removeprefix("random:"))
        return BaseFiles(config, "the random model", 0, 0)
    if source.startswith("hf:"):
        return _of_gguf(_gguf_in_cache(spec), spec)
    if source.startswith("package:"):
        return _of_gguf(file_in_package(source.removeprefix("package:")), spec)
    path = expanded(source)
    if source.endswith(".gguf"):
        return _of_gguf(path, spec)
    if path.is_dir():
        return BaseFiles(_config(str(path), spec), f"{path}/config.json", _size(path), 0)
    if looks_like_path(source):
        raise PastoError(
            f"{source}: no such folder",
            "Give a folder with config.json, a GGUF file or a Hub id (org/name).",
        )
    return _on_hub(spec, recipe)


def _config(folder: str, spec: ModelSpec, **more: Any) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **more)
    except Exception as error:
        raise load_failure(spec, error) from None


def _size(folder: Path) -> int | None:
    """Bytes of the weights of a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


def _of_gguf(path: Path, spec: ModelSpec) -> BaseFiles:
    if not path.is_file():
        raise PastoError(f"{path}: no such GGUF file", "Check model.source in the recipe.")
    folder, _ = dequantised_folder(path)
    if folder is not None and (folder / "config.json").is_file():
        return BaseFiles(_config(str(folder), spec), str(path), _size(folder), 0)
    config = _config(str(path.parent), spec, gguf_file=path.name)
    return BaseFiles(config, str(path), path.stat().st_size, 0, dequantise=True)


def _gguf_in_cache(spec: ModelSpec) -> Path:
    """A GGUF file of the Hub that is here already: its configuration stands inside it."""
    from huggingface_hub import try_to_load_from_cache

    org, _, rest = spec.source.removeprefix("hf:").partition("/")
    repo, _, file = rest.partition("/")
    found = None
    if file:
        found = try_to_load_from_cache(f"{org}/{repo}", file, revision=spec.revision)
    if not isinstance(found, str):
        raise PastoError(
            f"{spec.source} is not here yet, and the configuration of a GGUF file stands inside it",
            f"Fetch it (hf download {org}/{repo} {file}), or plan the repository that it was made "
            f"from: --set model.source=org/name.",
        )
    return Path(found)


def _on_hub(spec: ModelSpec, recipe: Path | None) -> BaseFiles:
    prefer_cache_off_network()
    try:
        config = _config(spec.source, spec, revision=spec.revision)
    except PastoError:
        beside = _beside(spec, recipe)
        if beside is None:
            raise
        return beside
    stored = _stored(spec)
    download = 0 if _in_cache(spec) else stored
    return BaseFiles(config, f"{spec.source}, config.json", stored, download)


def _beside(spec: ModelSpec, recipe: Path | None) -> BaseFiles | None:
    """What a configuration beside the recipe says, if it is of this very model."""
    from transformers import AutoConfig

    if recipe is None:
        return None
    path = recipe.with_name(recipe.name.removesuffix(".yaml") + BESIDE)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("_name_or_path") != spec.source:
            return None
        return BaseFiles(AutoConfig.for_model(**kept), str(path), None, None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stored(spec: ModelSpec) -> int | None:
    """Bytes of a repository's weights, from the headers of its files; None off the network."""
    from huggingface_hub import get_safetensors_metadata

    try:
        found = get_safetensors_metadata(spec.source, revision=spec.revision)
    except Exception:  # no network, no safetensors: the size is not known, and the plan says so
        return None
    # The names of dtypes in those headers hold their bits: BF16, F8_E4M3, I64.
    bits = {name: re.search(r"\d+", name) for name in found.parameter_count}
    return sum(
        count * (int(bit[0]) if (bit := bits[name]) else 8) // 8
        for name, count in found.parameter_count.items()
    )


def _in_cache(spec: ModelSpec) -> bool:
    """Whether the weights of a repository are in the cache of the Hub's client."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return any(
        isinstance(try_to_load_from_cache(spec.source, name, revision=spec.revision), str)
        for name in names
    )
