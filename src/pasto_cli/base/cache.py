"""The folder for files that can be made again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for derived files: $PASTO_CACHE, else ~/.cache/pasto."""
    return Path(os.environ.get("PASTO_CACHE") or Path.home() / ".cache" / "pasto")
