"""Writing files so that a full disk or a crash costs nothing that was there before."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pasto_cli.base.errors import PastoError


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
        raise PastoError(
            f"cannot write {path}: {reason}", "Free some disk, or choose another place with --out."
        ) from None


def read_limited(path: Path, limit: int) -> str:
    """A UTF-8 text file of at most `limit` bytes; a larger one is refused before it is read.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is no UTF-8.
        PastoError: If it is larger.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        raw = file.read(min(about.st_size, limit) + 1 if stat.S_ISREG(about.st_mode) else limit + 1)
    if len(raw) > limit:
        raise PastoError(f"{path}: larger than {limit // 2**20} MiB", "Is this the right file?")
    return raw.decode("utf-8").replace("\r\n", "\n")


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


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder (or file) beside, then rename: what is at `path` is the old or the new one,
    whole.

    Raises:
        PastoError: If it cannot be written.
    """
    from safetensors import SafetensorError

    scratch, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a kill left of the last time: between the two renames the old one is the only one.
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)
        _remove(scratch)
        try:
            write(scratch)
            if path.exists():
                path.rename(old)
            scratch.rename(path)
        except SafetensorError as error:
            raise PastoError(
                f"cannot write {path}: {error}",
                "Free some disk, or choose another place with --out.",
            ) from None
        finally:
            if old.exists() and not path.exists():  # interrupted between the two renames
                old.rename(path)
            _remove(scratch)
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
