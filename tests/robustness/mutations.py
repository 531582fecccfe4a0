"""Ten thousand damaged files: each is read, or refused in one line that names file and cause.

    python -m tests.robustness.mutations FOLDER [--count 10000] [--seed 0] [--kind NAME]...

FOLDER/outcomes.jsonl keeps one line for each input, so that the same command goes on where it was
stopped; what it has is summed up in a table of kinds and outcomes. An input is known by its seed,
kind and number, and is damaged in the same way each time. Readers run in forked processes: with an
alarm after 10 seconds, 2 GiB of memory more than they began with, and a hook that hears of every
file that is opened for writing outside the folder of the input."""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pasto_cli.base.errors import PastoError
from tests.robustness.kinds import KINDS, copy_example
from tests.support.faults import CHANGES

SECONDS = 10
MEMORY = 2 * 2**30
"""Bytes that a batch may take beyond what its process had."""
BATCH = 100


class Outcome(NamedTuple):
    """What became of one input."""

    kind: str
    number: int
    outcome: str
    """`read`, `refused`, or `WRONG: ...`."""
    detail: str
    """What was said."""
    seconds: float


class Hang(BaseException):
    """No `except Exception` on the way stops it."""


def judge(kind: str, number: int, seed: int, example: Path, made: Any, folder: Path) -> Outcome:
    """Damage a copy of an example and read it.

    Args:
        kind: Key of `KINDS`.
        number: Of the input.
        seed: Of all inputs.
        example: What the kind's `make` wrote.
        made: What it returned.
        folder: Where the damaged copy goes.
    """
    copy_example(example, folder)
    how = KINDS[kind]
    how.damage(random.Random(f"{seed} {kind} {number}"), folder, made)
    started = time.process_time()
    try:
        with _alarm():
            how.read(folder, made)
        outcome, detail = "read", ""
    except PastoError as error:
        wrong = _wrong_message(kind, folder, error)
        outcome, detail = (f"WRONG: {wrong}" if wrong else "refused"), str(error)[:400]
    except Hang:
        outcome, detail = f"WRONG: longer than {SECONDS} s", traceback.format_exc()[-1500:]
    except MemoryError:
        outcome, detail = "WRONG: memory", traceback.format_exc()[-1500:]
    except Exception as error:
        outcome = f"WRONG: {type(error).__name__} in {_place(error)}"
        detail = traceback.format_exc()[-1500:]
    return Outcome(kind, number, outcome, detail, round(time.process_time() - started, 3))


def _wrong_message(kind: str, folder: Path, error: PastoError) -> str | None:
    """What is wrong with what a user is told; None where it is as it should be."""
    lines = error.message.splitlines()  # all mistakes of a recipe or benchmark, a line each
    names = ("template",) if kind == "template" else (str(folder), folder.name)
    named = (any(name in line for name in names) or "--set" in line for line in lines)
    if not (lines and all(named)):
        return "a line without the file"
    if len(error.message) > 20_000:
        return "too long"
    return None if error.hint.strip() else "no next step"


def _place(error: BaseException) -> str:
    """The last line of ours that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "pasto_cli" in f.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}"


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: others may be busy on it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def make_example(kind: str, root: Path) -> tuple[Path, Any]:
    """The folder of a whole example, and what its maker returned."""
    example = root / "examples" / kind
    example.mkdir(parents=True)
    return example, KINDS[kind].make(example)


def _run(kind: str, numbers: Sequence[int], seed: int, root: Path, made: Any, kept: Path) -> None:
    """Judge some inputs in a child, which may die of one."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    torch.set_num_threads(1)
    folder = root / "inputs" / kind
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder.parent)  # deletions name what they delete relative to an open folder
    os.environ["PASTO_CACHE"] = str(folder)
    outside: list[str] = []
    sys.addaudithook(_guard(root, outside))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    with kept.open("a") as file:
        for number in numbers:
            signal.alarm(600)  # ends what waits, or loops without hearing the other alarm
            found = judge(kind, number, seed, root / "examples" / kind, made, folder)
            if outside:
                found = found._replace(outcome="WRONG: wrote outside", detail=str(outside))
                outside.clear()
            file.write(json.dumps(found._asdict()) + "\n")
            file.flush()
    os._exit(0)


def _guard(root: Path, outside: list[str]) -> Any:
    """An audit hook that notes changes of the disk elsewhere."""
    allowed = (str(root), "/dev/null", "/proc/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path: Any = None
        if event == "open" and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = arguments[0] if writes else None
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        if isinstance(path, str) and not os.path.abspath(path).startswith(allowed):
            outside.append(path)

    return hook


def show(kept: Path) -> bool:
    """Print the table of kinds and outcomes; whether all are right."""
    found = [Outcome(**json.loads(line)) for line in kept.open()]
    table = Counter((x.kind, x.outcome) for x in found)
    for (kind, outcome), count in sorted(table.items()):
        longest = max(x.seconds for x in found if (x.kind, x.outcome) == (kind, outcome))
        print(f"{kind:12} {count:6}  {outcome}  (at most {longest:.1f} s)")
    print(f"{len(found)} inputs")
    return not any(outcome.startswith("WRONG") for _, outcome in table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    asked = parser.parse_args()
    root: Path = asked.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    kept = root / "outcomes.jsonl"
    kept.touch()
    done: dict[str, set[int]] = {kind: set() for kind in KINDS}
    for line in kept.open():
        record = json.loads(line)
        done[record["kind"]].add(record["number"])
    for kind in asked.kind or KINDS:
        _sweep(kind, asked.count // len(KINDS), asked.seed, root, kept, done[kind])
    sys.exit(0 if show(kept) else 1)


def _sweep(kind: str, count: int, seed: int, root: Path, kept: Path, done: set[int]) -> None:
    left = [number for number in range(count) if number not in done]
    if not left:
        return
    shutil.rmtree(root / "examples" / kind, ignore_errors=True)
    _, made = make_example(kind, root)
    while left:
        before = len(done)
        _run(kind, left[:BATCH], seed, root, made, kept)
        for line in kept.open():
            record = json.loads(line)
            if record["kind"] == kind:
                done.add(record["number"])
        if len(done) < min(before + BATCH, before + len(left)):  # it died of an input
            died = next(number for number in left if number not in done)
            lost = Outcome(kind, died, "WRONG: the process died", "", 0.0)
            with kept.open("a") as file:
                file.write(json.dumps(lost._asdict()) + "\n")
            done.add(died)
        left = [number for number in left if number not in done]
        print(f"{kind}: {len(done)} of {count}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
