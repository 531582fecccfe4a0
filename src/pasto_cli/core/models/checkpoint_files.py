"""What is wrong with the files of a model, looked at before a library reads them.

transformers reports all of these as a model that it does not know, or reads them without a word.
"""

import json
from pathlib import Path

from pasto_cli.base.errors import PastoError

POINTER = b"version https://git-lfs"
"""What a file begins with that Git LFS has not fetched."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
ADAPTER = "adapter_config.json"


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no whole model.

    Raises:
        PastoError: For an adapter, a pointer of Git LFS, a missing shard or a file that ends early.
    """
    _refuse_adapter(folder)
    read = [file for file in sorted(folder.iterdir()) if _is_read(file)]
    for file in read:
        if _is_pointer(file):
            raise PastoError(
                f"{file} is a pointer of Git LFS: the file itself was not fetched",
                f"git -C {folder} lfs pull",
            )
    if missing := missing_files(folder):
        raise PastoError(
            f"{folder}: {missing}",
            "Check model.source, or copy the model again with all of its files.",
        )
    for file in read:
        if file.suffix == ".safetensors":
            _check_length(file)


def missing_files(folder: Path) -> str | None:
    """What a folder lacks of a whole model, in words; None where it has all."""
    if not (folder / "config.json").exists():
        return "config.json is missing"
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is damaged"
        if lost := sorted(name for name in shards if not (folder / str(name)).exists()):
            count = f"{len(lost)} of {len(shards)} files of weights are missing"
            return f"{count}: {', '.join(lost[:3])}"
        return None
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return "it holds no weights (model.safetensors is missing)"
    return None


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """Where files of a Hub repository lie in the cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _refuse_adapter(folder: Path) -> None:
    if (folder / "pasto.json").exists():
        raise PastoError(
            f"{folder} is an adapter of pasto, not a model",
            "Give the base model; the adapter is what --adapter takes.",
        )
    config = folder / ADAPTER
    if not config.exists():
        return
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise PastoError(
        f"{folder} is a LoRA adapter{f' of {base}' if base else ''}, not a model of its own "
        f"({ADAPTER})",
        "Merge it first (peft: model.merge_and_unload().save_pretrained(FOLDER)) and give that "
        "folder, or give the base model.",
    )


def _is_read(file: Path) -> bool:
    """Whether transformers would read a file; a second copy of the weights may be in any state."""
    return (
        file.is_file()
        and file.suffix in (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
        and not file.name.startswith(("consolidated", "training_args", "optimizer"))
    )


def _is_pointer(file: Path) -> bool:
    """Whether a file is one that Git LFS was to replace."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _check_length(file: Path) -> None:
    """Refuse a safetensors file that ends before its tensors do, or has no header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
            if not 0 < header <= size - 8:
                raise ValueError("its header is not whole")
            tensors = json.loads(opened.read(header))
        ends = [x["data_offsets"][1] for name, x in tensors.items() if name != "__metadata__"]
        wanted = 8 + header + max(ends, default=0)
        if wanted != size:
            raise ValueError(f"{size:,} bytes of {wanted:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PastoError(
            f"{file} is damaged or was not copied whole: {str(error)[:100]}",
            "Copy or download the model again.",
        ) from None
