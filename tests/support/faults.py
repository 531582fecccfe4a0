"""A counted fault injector: something happens at the n-th change of the disk that a process makes.

What counts are calls of the system as `sys.addaudithook` tells them (files opened for writing,
folders made, renames, links, deletions), and the middle of what is written: half of a text, of a
safetensors file, of a line that is appended, and the moment when it is to reach the disk. A fork
needs no undoing: an audit hook stays for the life of a process."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {
    "os.mkdir": 0,
    "os.rename": 1,
    "os.symlink": 1,
    "os.remove": 0,
    "os.rmdir": 0,
}
"""Audit event -> which of its arguments is the path that is changed."""
FREES = ("os.remove", "os.rmdir")
"""What a full disk lets through."""


def disk_full(path: str) -> OSError:
    """What the system says."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class Faults:
    """Counts changes of the disk below a folder, and does something at each of them.

    Args:
        folder: Changes elsewhere do not count.
        act: Receives number, name and path of each change just before it happens, or in its middle;
            may raise an OSError or end the process.
    """

    def __init__(self, folder: Path, act: Callable[[int, str, str], object]) -> None:
        self.folder, self.act = str(folder), act
        self.count = 0
        self.busy = False
        self.appended: list[_Appended] = []
        """Files that were opened to append to them."""

    def point(self, what: str, path: Any) -> None:
        """A change of the disk is about to happen, or half of it has."""
        name = os.path.abspath(os.fsdecode(path))
        if self.busy or not name.startswith(self.folder):
            return
        number, self.count = self.count, self.count + 1
        with self._uncounted():
            self.act(number, what, name)

    def install(self) -> None:
        """From now on, for the rest of this process."""
        sys.addaudithook(self._hook)
        patched: Any = Path
        patched.write_text = self._halved_text(Path.write_text)
        patched.open = self._counting_open(Path.open)
        os.fsync = self._counting_fsync(os.fsync)
        for name in ("training.checkpoint", "training.svd_cache", "artifact.store"):
            module: Any = sys.modules[f"pasto_cli.core.{name}"]
            module.save_file = self._halved_tensors(module.save_file)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            path = arguments[CHANGES[event]]
            # To make a folder that is there changes nothing, and needs no room.
            if event != "os.mkdir" or not os.path.isdir(path):
                self.point(event, path)
        elif event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self.point("open", path)

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _halved_text(self, real: Callable[..., Any]) -> Any:
        def write_text(path: Path, text: str, *args: Any, **options: Any) -> Any:
            real(path, text[: len(text) // 2], *args, **options)
            self.point("half of a text", path)
            with self._uncounted():
                return real(path, text, *args, **options)

        return write_text

    def _counting_fsync(self, real: Callable[..., Any]) -> Any:
        def fsync(number: int) -> None:
            self.point("fsync", os.readlink(f"/proc/self/fd/{number}"))
            real(number)

        return fsync

    def _halved_tensors(self, real: Callable[..., Any]) -> Any:
        def save_file(tensors: Any, path: Path, *args: Any) -> None:
            self.point("tensors", path)
            with self._uncounted():
                real(tensors, path, *args)
                raw = path.read_bytes()
                os.truncate(path, len(raw) // 2)
            self.point("half of the tensors", path)
            with self._uncounted():
                path.write_bytes(raw)

        return save_file

    def _counting_open(self, real: Callable[..., Any]) -> Any:
        def open_(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = real(path, mode, *args, **options)
            if mode != "a":
                return file
            self.appended.append(_Appended(file, path, self))
            return self.appended[-1]

        return open_


class _Appended:
    """A file that lines are appended to, by halves."""

    def __init__(self, file: Any, path: Path, faults: Faults) -> None:
        self.file, self.path, self.faults = file, path, faults

    def write(self, text: str) -> None:
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        self.faults.point("half of a line", self.path)
        self.file.write(text[len(text) // 2 :])

    def flush(self) -> None:
        self.faults.point("flush", self.path)
        self.file.flush()

    def truncate(self, size: int) -> None:
        self.faults.point("truncate", self.path)
        self.file.truncate(size)

    def close(self) -> None:
        self.file.close()

    def move(self, path: Path) -> None:
        """After a fork: let what is written from now on go into a copy of the file."""
        if not self.file.closed:
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), self.file.fileno())
