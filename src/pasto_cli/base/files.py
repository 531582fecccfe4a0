"""Files and folders that are replaced whole or not at all, whatever happens in between.

Something new is written beside its place and renamed to it when it is complete. Beside `X` stand,
for the time of the writing only:

.X.part-...  the file or folder that is being written; each writer has a name of its own (`scratch`)
.X.old       the folder that was there before, between the two renames that replace it

A file is replaced by one rename. A folder needs two, since a rename does not replace a folder that
holds anything: X -> .X.old, then .X.part-... -> X. A writer that is killed between the two leaves
only .X.old; the next writer, or the next reader that calls `recover`, puts it back.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.scratch import clear_stale, scratch_for
from pasto_cli.base.text import decode_text, half_character

LOOKS, PAUSE = 10, 0.02
"""How often, and how many seconds apart, a reader looks for a folder that is being replaced."""
SWAPS = 50
"""How often a writer tries to replace a folder that others replace or put back meanwhile."""

_OTHERS_WERE_FIRST = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
"""What a rename says when another writer put a folder there, or took one away, just now."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class NotWritten(PastoError):
    """Something could not be written; what was there before is there still."""


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn what can go wrong with a disk into a clear error.

    Raises:
        NotWritten: Instead of an OSError, or of what other libraries make of one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        # safetensors and tokenizers are written in Rust, and tell what the system said in words.
        if not isinstance(error, OSError | SafetensorError) and not _OS_ERROR.search(str(error)):
            raise
        raise not_written(path, error) from None


def not_written(path: Path, error: Exception) -> NotWritten:
    """What kept a file from being written, and what to do about it."""
    reason = getattr(error, "strerror", None) or str(error)
    code = getattr(error, "errno", None)
    if code is None and (found := _OS_ERROR.search(reason)):
        code = int(found[1])
    match code:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            hint = "Give yourself the right to write there, or choose another place with --out."
        case errno.EISDIR:
            hint = f"{path} is a folder: give the name of a file."
        case errno.ENOTDIR | errno.EEXIST | errno.ENOENT:
            hint = f"{path.parent} must be a folder: make it, or choose another place with --out."
        case errno.ENAMETOOLONG | errno.EINVAL | errno.ELOOP:
            hint = "Choose another name with --out."
        case _:
            hint = "Free some disk, or choose another place with --out."
    return NotWritten(f"cannot write {path}: {reason}", hint)


def unusable(error: OSError) -> PastoError | None:
    """What a disk refused somewhere in a library, such as in its folder for temporary files.

    None where it is not the disk's fault.
    """
    states = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
    states += (errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE)
    no_folder = error.errno == errno.ENOENT and "temporary directory" in str(error)
    if not no_folder and (error.errno not in states or error.filename is None):
        return None
    where = "a temporary file" if no_folder else error.filename
    return PastoError(
        f"{where} cannot be used: {error.strerror}",
        "Make space or give yourself the right to write there. TMPDIR sets the folder for temporary"
        " files, HF_HOME the one for models of the Hub, PASTO_CACHE the one of pasto.",
    )


def require_file_name(path: Path) -> None:
    """Refuse a folder where a file is to be written; before the work whose result it is.

    Raises:
        PastoError: If the path is one.
    """
    if path.is_dir():
        raise not_written(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))


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
        path: Its parents are made where they are missing.
        write: Makes the file at the path that it is given.
        sync: Wait until its bytes are on the disk, so that a power cut leaves the old or new file.

    Raises:
        PastoError: If it cannot be written.
    """
    scratch = scratch_for(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(path)
        try:
            write(scratch)
            if sync:
                _sync(scratch)
            scratch.replace(path)
        finally:
            _clean(scratch)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a folder (or file) as a whole, or leave it as it was.

    A kill at any moment leaves the old or the new one; after one between the two renames, readers
    find the old one by `recover`. Of two writers at once the later one's stays, whole.

    Args:
        path: Its parents are made where they are missing.
        write: Makes the folder or file at the path that it is given, where nothing is yet.

    Raises:
        PastoError: If it cannot be written.
    """
    scratch, old = scratch_for(path), _old(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)  # a kill between the two renames left the only copy there
        _clean(old)
        clear_stale(path)
        try:
            write(scratch)
            # A rename may reach the disk before the bytes do: after a power cut the new folder
            # would stand there with empty files, and the old one would be gone.
            for file in scratch.rglob("*") if _is_folder(scratch) else [scratch]:
                _sync(file)
            _swap(scratch, path)
        finally:
            _put_back(path)
            _clean(scratch)
            _clean(old)


def _sync(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    if path.is_file() and not path.is_symlink():
        # A copy may be read-only; Windows syncs only what is open for writing.
        file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


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
        try:
            _old(path).rename(path)
        except OSError as error:
            if error.errno not in _OTHERS_WERE_FIRST:
                raise


def _swap(new: Path, path: Path) -> None:
    """Let `new` stand at `path`, and what stood there at `.X.old`."""
    if not (_is_folder(new) or _is_folder(path)):
        new.replace(path)  # one rename, and no moment without a file
        return
    for left in reversed(range(SWAPS)):
        try:
            if os.path.lexists(path):
                _clean(_old(path))  # another writer's, where there is one: a whole one stands here
                path.rename(_old(path))
            new.rename(path)
            return
        except OSError as error:
            # Another writer was first, or a reader that took this one for dead put the old folder
            # back: once more.
            first = error.errno in _OTHERS_WERE_FIRST
            if not (left and first and os.path.lexists(new)):
                raise
            time.sleep(PAUSE * left / SWAPS)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clean(path: Path) -> None:
    """Delete what is of no use any more; what resists (a file that is open on NFS) is left."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
