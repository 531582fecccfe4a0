"""The command line, run in this process; and what tests of it share."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"
SHORT = ("--set", "training.epochs=2", "--set", "pairs.count=24")
"""What makes a training of recipes/tiny.yaml one of seconds."""
OWN = """
format: 1
name: own
title: A benchmark of our own
licence: MIT
source: this test
instruction: "{situation} {action} Yes or no?"
prefill: "My choice:"
dilemmas:
  - id: d1
    situation: It rains.
    actions: [{text: Say so., values: [candour]}, {text: Say nothing., values: [peace]}]
controls:
  - {id: c1, kind: arithmetic, questions: ["Is 1 + 1 = 2?", "Is 1 + 1 = 3?"], right: 0}
  - {id: c2, kind: preference, questions: ["Is tea better than milk?", "Is milk better than tea?"]}
"""
"""A benchmark file of six questions."""


class Said(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The first line of the error message."""
        return next((line for line in self.err.splitlines() if line.startswith("error:")), "")

    @property
    def next_step(self) -> str:
        """What the user is told to do about it."""
        return next(
            (
                line.removeprefix("next:").strip()
                for line in self.err.splitlines()
                if line.startswith("next:")
            ),
            "",
        )


class Finished(NamedTuple):
    """A folder with one finished run in `runs/`."""

    root: Path
    run: Path
    said: Said


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Limit torch to some threads. Two that wait for each other on a busy machine take twenty times
    as long as one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call(args: tuple[object, ...], stdin: str | bytes | None = None) -> int:
    """Run `pasto ARGS` in this process; the exit code. An exception that is not an exit is a bug
    and goes through."""
    from pasto_cli.__main__ import main

    raw = stdin if isinstance(stdin, bytes) else (stdin or "").encode()
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr(sys, "argv", ["pasto", *map(str, args)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        patch.setenv("COLUMNS", "110")
        for name in (
            "FORCE_COLOR",
            "TTY_COMPATIBLE",
            "TTY_INTERACTIVE",
            "GITHUB_ACTIONS",
            "PY_COLORS",
        ):
            patch.delenv(name, raising=False)
        try:
            main()
        except SystemExit as done:
            assert done.code is None or isinstance(done.code, int), (
                f"exit with a text: {done.code!r}"
            )
            return done.code or 0
        except KeyboardInterrupt:
            pytest.fail("Ctrl-C reached the interpreter: the user sees a traceback")
    return 0


def call_in(folder: Path, *args: object, own_cache: bool = True) -> Said:
    """Run `pasto ARGS` in a folder and keep what it says, for fixtures that live longer than a
    test.

    With a cache of its own a decomposition never comes from a run on other threads, which would
    round otherwise; the demo model, slow to dequantise, takes the user's cache.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        if own_cache:
            patch.setenv("PASTO_CACHE", str(folder / ".cache"))
        code = call(args)
    return Said(code, out.getvalue(), err.getvalue())


def strict(text: str) -> object:
    """JSON as every reader takes it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, links not followed."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
