"""Processes that are killed while they write files."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path


def killed_between_renames(write: Callable[[], object]) -> None:
    """Let a process replace a folder and kill it after the first of the two renames."""
    code = _in_a_child(write, lambda path: ".part-" in str(path), ("rename",))
    assert code == -signal.SIGKILL


def killed_at(moment: int, write: Callable[[], object]) -> None:
    """Let a process write and kill it before it changes the disk for the `moment`-th time, from 0.

    Only what tests write with counts: folders and texts made, renames, deletions of what is there.
    """
    seen = -1

    def now(path: Path) -> bool:
        nonlocal seen
        seen += 1
        return seen == moment

    changes = ("mkdir", "write_text", "rename", "replace", "rmtree")
    assert _in_a_child(write, now, changes) == -signal.SIGKILL


def _in_a_child(
    write: Callable[[], object], when: Callable[[Path], bool], changes: tuple[str, ...]
) -> int:
    """Exit code of a forked process in which a change of the disk kills it if `when` says so."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        for name in changes:
            owner = shutil if name == "rmtree" else Path
            setattr(owner, name, _deadly(getattr(owner, name), when))
        write()
    finally:
        os._exit(99)


def _deadly(real: Callable[..., object], when: Callable[[Path], bool]) -> Callable[..., object]:
    def change(path: Path, *args: object, **options: object) -> object:
        if when(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *args, **options)

    return change
