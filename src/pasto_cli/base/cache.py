"""The folder for files that can be made again.

What cannot be read from it or kept in it costs time, never a run: a full or read-only disk, a file
where the folder should be, a user without a home.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_file
from pasto_cli.base.paths import expanded

VARIABLE = "PASTO_CACHE"
"""The environment variable that names the folder."""


def cache_dir() -> Path | None:
    """Folder for derived files: $PASTO_CACHE, else ~/.cache/pasto; None without a home.

    Raises:
        PastoError: If $PASTO_CACHE begins with `~` and there is no such home.
    """
    if given := os.environ.get(VARIABLE):
        try:
            return expanded(given)
        except PastoError as error:
            raise PastoError(f"{VARIABLE}={error.message}", error.hint) from None
    try:
        return Path.home() / ".cache" / "pasto"
    except RuntimeError:
        return None


def cached_file(folder: str, name: str) -> Path | None:
    """The place of a file in a folder of the cache; None where there is no cache."""
    root = cache_dir()
    return None if root is None else root / folder / name


def keep(path: Path | None, write: Callable[[Path], object]) -> None:
    """Keep a file in the cache where that is possible.

    Args:
        path: From `cached_file`.
        write: Makes the file at the path that it is given.
    """
    if path is not None:
        with contextlib.suppress(OSError, PastoError):
            replace_file(path, write)


def why_unusable(folder: str) -> str | None:
    """What keeps a folder of the cache from being made, in words; None where it can be used.

    Raises:
        PastoError: If a file stands where the folder should be: no state of a disk, but a mistake.
    """
    root = cache_dir()
    if root is None:
        return f"there is no home directory for the cache; {VARIABLE} names a folder"
    path = root / folder
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (NotADirectoryError, FileExistsError) as error:
        raise PastoError(
            f"cannot make the cache folder {path}: {error.strerror}",
            f"A file stands in its place; {VARIABLE} names another folder.",
        ) from None
    except OSError as error:
        return f"the cache {path} cannot be written ({error.strerror}); {VARIABLE} names another"
    return None
