"""When something was made, and by which versions."""

import importlib.metadata
from datetime import UTC, datetime


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    names = ("pasto-cli", "torch", "transformers", "safetensors", "bitsandbytes", "numpy")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Present time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
