"""Files and folders that are replaced whole or not at all, whatever happens in between.

Something new is written beside its place and renamed to it when it is complete. Beside `X` stand,
for the time of the writing only:

.X-PID     the file that is being written (two processes that write one file do not meet)
.X.part    the folder that is being written
.X.old     the folder that was there before, between the two renames that replace it

A file is replaced by one rename. A folder needs two, since a rename does not replace a folder that
holds anything: X -> .X.old, then .X.part -> X. A writer that is killed between the two leaves only
.X.old; the next writer, or the next reader that calls `recover`, puts it back.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.text import decode_text, half_character

LOOKS, PAUSE = 10, 0.02
"""How often, and how many seconds apart, a reader looks for a folder that is being replaced."""
SWAPS = 5
"""How often a writer tries to replace a folder that readers put back meanwhile."""


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn what can go wrong with a disk into a clear error.

    Raises:
        PastoError: Instead of an OSError, or of what safetensors makes of one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PastoError(
            f"cannot write {path}: {reason}", "Free some disk, or choose another place with --out."
        ) from None


def read_limited(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes; a larger one is refused before it is read.

    Raises:
        OSError: If it cannot be read.
        NotText: If it is no text, see `decode_text`.
        PastoError: If it is larger.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        # One byte more than is allowed tells a file that is too large. A pipe has no size.
        size = min(status.st_size, limit) if stat.S_ISREG(status.st_mode) else limit
        raw = file.read(size + 1)
    if len(raw) > limit:
        raise PastoError(f"{path}: larger than {limit // 2**20} MiB", "Is this the right file?")
    return decode_text(raw, str(path))


def read_text(path: Path) -> str:
    """A text file of any size that memory holds, see `decode_text`.

    Raises:
        OSError: If it cannot be read.
        NotText: If it is no text.
    """
    return decode_text(path.read_bytes(), str(path))


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, or leave it as it was.

    Raises:
        PastoError: If it cannot be written, or the text holds half a character.
    """
    if half := half_character(text):
        raise PastoError(
            f"cannot write {path}: its text holds {half}, half a character",
            "Give words and names that are UTF-8.",
        )
    replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object], sync: bool = False) -> None:
    """Replace a file (or link) as a whole, or leave it as it was.

    Args:
        path: In a folder that exists.
        write: Makes the file at the path that it is given.
        sync: Wait until its bytes are on the disk, so that a power cut leaves the old or new file.

    Raises:
        PastoError: If it cannot be written.
    """
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with writing(path):
        try:
            write(scratch)
            if sync:
                with scratch.open("rb+") as file:
                    os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder (or file) as a whole, or leave it as it was, by one writer at a time.

    A kill at any moment leaves the old or the new one; after one between the two renames, readers
    find the old one by `recover`.

    Args:
        path: Its parents are made where they are missing.
        write: Makes the folder or file at the path that it is given, where nothing is yet.

    Raises:
        PastoError: If it cannot be written.
    """
    part, old = path.parent / f".{path.name}.part", _old(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)  # a kill between the two renames left the only copy there
        _remove(old)
        _remove(part)
        try:
            write(part)
            _swap(part, path)
        finally:
            _put_back(path)
            _remove(part)
            _remove(old)


def recover(path: Path) -> None:
    """Put an old folder back that a killed writer left aside; to be called before reading `path`.

    A writer that is alive is between its two renames for microseconds: it is given time to finish.
    Where the folder cannot be put back (a read-only disk), `path` stays missing.
    """
    for _ in range(LOOKS):
        if os.path.lexists(path) or not os.path.lexists(_old(path)):
            return
        time.sleep(PAUSE)
    with contextlib.suppress(OSError):  # the writer finished, or another reader was first
        _put_back(path)


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _put_back(path: Path) -> None:
    if not os.path.lexists(path) and os.path.lexists(_old(path)):
        _old(path).rename(path)  # refused by the system if a new folder appeared just now


def _swap(new: Path, path: Path) -> None:
    """Let `new` stand at `path`, and what stood there at `.X.old`."""
    if not (_is_folder(new) or _is_folder(path)):
        new.replace(path)  # one rename, and no moment without a file
        return
    for left in reversed(range(SWAPS)):
        if os.path.lexists(path):
            path.rename(_old(path))
        try:
            new.rename(path)
            return
        except OSError:
            # A reader that took this writer for dead put the old folder back: move it away again.
            if not (left and os.path.lexists(path)):
                raise


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
