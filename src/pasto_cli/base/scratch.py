"""Names of what is being written, which no two writers share.

    .X.part-MACHINE-PID-NUMBER

MACHINE stands for the process ids of one machine (or container) since it started: on a disk that
several machines share, a process id alone names many processes. By it a writer also knows what a
killed one has left (`clear_stale`).
"""

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import time
from pathlib import Path

LENGTH = 40
"""Characters of a file's own name that its scratch name repeats: file systems take 255 bytes."""
DAY = 86400.0
"""Seconds after which another machine's writer counts as dead."""
_numbers = itertools.count()


def scratch_for(path: Path) -> Path:
    """A name beside a path that no other writer takes, in this process or another one."""
    return path.parent / f"{_stem(path)}-{this_process()}-{next(_numbers)}"


def clear_stale(path: Path) -> None:
    """Delete what killed writers of a path have left beside it."""
    stem = _stem(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if entry.name.startswith(stem) and _is_stale(entry, entry.name[len(stem) :]):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _stem(path: Path) -> str:
    return f".{path.name[:LENGTH]}.part"


def _is_stale(entry: os.DirEntry[str], rest: str) -> bool:
    """Whether the writer of an entry is dead, as far as can be known from here."""
    if not rest:  # as earlier versions named it, one writer at a time
        return True
    found = re.fullmatch(r"-(\w+-\d+)-\d+", rest)
    if found is None:
        return False
    if (dead := is_dead(found[1])) is not None:
        return dead
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY


def this_process() -> str:
    """MACHINE-PID of this process."""
    return f"{_machine()}-{os.getpid()}"


def is_dead(process: str) -> bool | None:
    """Whether a process (MACHINE-PID) has ended; None where it cannot be known from here."""
    machine, _, pid = process.partition("-")
    if machine != _machine() or os.name == "nt":  # on Windows no signal only asks
        return None
    try:
        os.kill(int(pid), 0)  # sends nothing: asks whether there is such a process
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@functools.cache
def _machine() -> str:
    """Eight digits for the process ids that this process sees."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
