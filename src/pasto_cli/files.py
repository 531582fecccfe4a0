"""Writing files so that a full disk or a crash costs nothing that was there before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pasto_cli.errors import PastoError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a disk into a clear error.

    Raises:
        PastoError: Instead of an OSError from the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PastoError(f"cannot write {path}: {reason}", "Free some disk, or choose another place with --out.") from None


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, or leave it as it was.

    Raises:
        PastoError: If it cannot be written.
    """
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with writing(path):
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
