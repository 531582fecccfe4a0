"""A full disk, or a kill, at every change of the disk that a training makes; what is left of it.

    python -m tests.robustness.faults FOLDER [--only N]... [--jobs 2]

Prints one JSON line a point, and a table of outcomes; goes on where it was stopped. Of a run that a
fault ended, `pasto train --resume` must make the same bytes as a run that nothing happened to,
unless the fault came before there was anything to lose."""

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pasto_cli.cli.app import main
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import ModelSpec
from pasto_cli.core.training import trainer
from pasto_cli.workflows import train
from pasto_cli.workflows.progress import Silent
from tests.support.faults import FREES, Faults, disk_full
from tests.support.kills import begun, finish, result, runs_of
from tests.support.terminal import TINY

SETTINGS = (
    "training.epochs=2",
    "training.batch_size=8",
    "training.validation=0.15",
    "training.certificate=0.15",
    "pairs.count=12",
    "pairs.templates=['Be {persona}.']",
    "adapter.rank=2",
    "adapter.max_modules=2",
    "evaluation.benchmark=sentiment",
)
COMMAND = ("train", str(TINY), *(x for key in SETTINGS for x in ("--set", key)))
DONE = (0, 1)
"""Exit codes of a training to its end: on so few pairs the certificate may fail."""


@functools.cache
def base_model() -> LoadedModel:
    """The base of tiny.yaml, loaded once."""
    torch.set_num_threads(1)
    return train.open_model(ModelSpec(source="random:llama"), Silent())


class Ended(NamedTuple):
    """What a training left: its exit code and what it said."""

    code: int
    said: str


def forked(folder: Path, *args: str, faults: Faults | None = None) -> Ended:
    """Run `pasto ARGS` in a child, in a folder."""
    model, log = base_model(), folder / "said"
    child = os.fork()
    if child:
        return Ended(finish(child), log.read_text(errors="replace"))
    os.chdir(folder)
    _say_into(log)
    os.environ["PASTO_CACHE"] = "cache"
    trainer.SNAPSHOT_SECONDS = 0.0  # after every step
    # What takes most of the time and writes nothing: the model is the parent's, as it was loaded
    # there, and the personas are not tried on it.
    train.open_model = lambda *_: model
    train.check_elicitation = lambda *_: None
    sys.argv = ["pasto", *args]
    code: Any = 0
    try:
        if faults is not None:
            faults.install()
        main()
    except SystemExit as done:
        code = done.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_into(log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))


class Point(NamedTuple):
    """A change of the disk, and what a fault there left."""

    number: int
    what: str
    killed: Path
    """The folder as a kill leaves it."""
    full: Path | None
    """The folder after the training has ended on a full disk; None where one does no harm."""


class Sweep:
    """One training, copied at each point; what a fault there leaves is judged afterwards.

    A kill leaves the disk as it is at that moment: a copy. For a full disk the training forks, and
    the child goes on in a copy with the error that the system would give.

    Args:
        root: An empty folder.
        only: Numbers of points; None for all.
    """

    def __init__(self, root: Path, only: Sequence[int] | None = None) -> None:
        self.root, self.only = root, only
        self.work = root / "whole"
        self.known: dict[str, str] = {}
        """Digest of a folder -> what becomes of it."""
        if not (root / "copied").exists():  # else it was stopped while it judged
            (self.work / "cache").mkdir(parents=True)
            self.faults = Faults(self.work, self._copy)
            code, said = forked(self.work, *COMMAND, faults=self.faults)
            assert code in DONE, said
            (root / "copied").touch()
        self.expected = result(runs_of(self.work)[0])

    def points(self) -> Iterator[Point]:
        """Those that were looked at."""
        for line in (self.root / "points").read_text().splitlines():
            number, _, what = line.partition(" ")
            full = self.root / f"full{number}"
            killed = self.root / f"kill{number}"
            yield Point(int(number), what, killed, full if full.is_dir() else None)

    def _copy(self, number: int, what: str, path: str) -> None:
        if self.only is not None and number not in self.only:
            return
        short = path.removeprefix(str(self.work))
        with open(self.root / "points", "a") as file:
            file.write(f"{number} {what} {short}\n")
        shutil.copytree(self.work, self.root / f"kill{number}", symlinks=True)
        if what in FREES:
            return
        copy = Path(shutil.copytree(self.work, self.root / f"full{number}", symlinks=True))
        child = os.fork()
        if child:
            (copy / "code").write_text(str(finish(child)))
            return
        os.chdir(copy)
        _say_into(copy / "said")
        for file in self.faults.appended:
            file.move(copy / os.path.relpath(os.path.join(self.work, file.path), self.work))
        self.only = ()
        raise disk_full(path)

    def after_kill(self, point: Point) -> str:
        """What becomes of a training that was killed at a point."""
        return self._go_on(point.killed)

    def after_full_disk(self, point: Point) -> str:
        """What a training said on a full disk, and what becomes of it."""
        assert point.full is not None
        said = (point.full / "said").read_text(errors="replace")
        code = int((point.full / "code").read_text())
        if "Traceback" in said or code not in DONE:
            return f"WRONG: exit {code}: {said[-500:]}"
        if "certificate failed" in said or "error:" not in said:  # a cache, or `latest`
            return self._same(point.full, "went on, the same bytes")
        if said.count("error:") != 1 or "No space left" not in said:
            return f"WRONG: {said[-500:]}"
        found = begun(point.full)
        if found is not None and "pasto train --resume" not in said:
            return "WRONG: no way to go on is named"
        return self._go_on(point.full)

    def _go_on(self, folder: Path) -> str:
        run = begun(folder)
        if run is None:
            return "nothing was begun"
        state = digest(run)
        if state not in self.known:
            code, said = forked(folder, "train", "--resume", str(run.relative_to(folder)))
            if "is finished" in said:
                self.known[state] = self._same(folder, "had finished, the same bytes")
            elif code in DONE and "Traceback" not in said:
                self.known[state] = self._same(folder, "resumed, the same bytes")
            else:
                self.known[state] = f"WRONG: exit {code}: {said[-500:]}"
        return self.known[state]

    def _same(self, folder: Path, name: str) -> str:
        run = runs_of(folder)[0]
        if result(run) != self.expected:
            return "WRONG: other bytes"
        left = [p.name for p in run.rglob(".*")]
        left += [p.name for p in run.iterdir() if p.name == "checkpoint"]
        return f"WRONG: left {left}" if left else name


def digest(folder: Path) -> str:
    """What files a folder holds, and what is in them."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\.part-.*", ".part", str(path.relative_to(folder)))
        found.update(f"{name}\n".encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def judge(runs: Sweep, points: Sequence[Point]) -> None:
    """Append what becomes of some points to `outcomes`."""
    for point in points:
        found = {"kill": runs.after_kill(point)}
        if point.full is not None:
            found["full disk"] = runs.after_full_disk(point)
        line = json.dumps({"point": point.number, "what": point.what, **found}) + "\n"
        with open(runs.root / "outcomes", "a") as file:
            file.write(line)
        if "WRONG" not in line:
            for folder in filter(None, (point.killed, point.full)):
                shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Every point with both faults, or those that `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", type=int, action="append")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    base_model()
    runs = Sweep(asked.folder.resolve(), asked.only)
    kept = runs.root / "outcomes"
    kept.touch()
    done = {json.loads(line)["point"] for line in kept.open()}
    left = [point for point in runs.points() if point.number not in done]
    size = -(-len(left) // asked.jobs)  # neighbours are often alike, and judged once
    children = []
    for job in range(asked.jobs):
        child = os.fork()
        if not child:
            judge(runs, left[job * size : (job + 1) * size])
            os._exit(0)
        children.append(child)
    codes = [finish(child) for child in children]
    found = sorted(map(json.loads, kept.open()), key=lambda record: record["point"])
    table: Counter[tuple[str, str]] = Counter()
    for record in found:
        print(json.dumps(record))
        table.update((fault, record[fault]) for fault in ("kill", "full disk") if fault in record)
    for (fault, outcome), count in sorted(table.items()):
        print(f"{count:5}  {fault:9}  {outcome}")
    wrong = any(outcome.startswith("WRONG") for _, outcome in table)
    sys.exit(wrong or any(codes) or len(found) < len(left))


if __name__ == "__main__":
    sweep()
