"""Where a base model comes from, as a recipe's `model.source` says.

random:NAME            random weights (`random_models`)
package:NAME/FILE      a GGUF file inside an installed Python package
hf:ORG/NAME/FILE       a GGUF file of a repository on the Hub
FILE.gguf              a GGUF file (`gguf`)
FOLDER                 a folder with config.json
org/name               a repository on the Hub
"""

from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_ids import looks_like_path
from pasto_cli.base.hub_reach import prefer_cache_off_network
from pasto_cli.base.paths import expanded
from pasto_cli.core.models.checkpoint_files import check_folder
from pasto_cli.core.models.gguf import dequantised, file_in_package, file_on_hub
from pasto_cli.core.models.load_errors import load_failure
from pasto_cli.core.models.loaded import Notify
from pasto_cli.core.recipe.schema import ModelSpec


class Found(NamedTuple):
    """What a recipe's `source` stands for."""

    source: str | None = None
    """Folder or Hub id to load from."""
    commit: str | None = None
    """An identity where the Hub gives none."""
    loaded: tuple[Any, Any] | None = None
    """Model and tokenizer, where they are in memory already."""


def resolve_source(spec: ModelSpec, notify: Notify) -> Found:
    """Where to load a model from; GGUF files are read on the way.

    Raises:
        PastoError: If there is no such model here, or it cannot be fetched.
    """
    if (file := gguf_file(spec)) is not None:
        plain = dequantised(file, notify)
        return Found(plain.folder, plain.identity, plain.loaded)
    source = spec.source
    if source.startswith("package:"):
        source = str(file_in_package(source.removeprefix("package:")))
    folder = expanded(source)
    if folder.is_dir():
        check_folder(folder)
        return Found(str(folder))
    if looks_like_path(source):  # never looked up on the network
        raise PastoError(
            f"{source}: no such folder",
            "Give a folder with config.json, a GGUF file or a Hub id (org/name).",
        )
    prefer_cache_off_network(notify)
    return Found(source)


def gguf_file(spec: ModelSpec) -> Path | None:
    """The GGUF file that a base comes from; None where it is no such file.

    Raises:
        PastoError: If the file is not here and cannot be fetched.
    """
    source = spec.source
    if source.startswith("package:"):
        source = str(file_in_package(source.removeprefix("package:")))
    if source.startswith("hf:"):
        prefer_cache_off_network()
        try:
            source = str(file_on_hub(source.removeprefix("hf:"), spec.revision))
        except PastoError:
            raise
        except Exception as error:
            raise load_failure(spec, error) from None
    if not source.endswith(".gguf"):
        return None
    path = expanded(source)
    if not path.is_file():
        raise PastoError(f"{path}: no such GGUF file", "Check model.source in the recipe.")
    return path
