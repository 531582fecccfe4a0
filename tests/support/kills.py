"""Kills trainings at random moments and resumes them; prints one JSON line a moment. Run by
test_resuming.py in a process of its own, with the arguments RECIPE FOLDER SEED COUNT [SET ...].

Children are forked from a process that has imported everything but computed nothing, so that a
training takes a second or two."""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  (imported once, not in every child)

from pasto_cli.cli.app import main
from pasto_cli.workflows import train  # noqa: F401


def start(folder: Path, *args: str) -> int:
    """Run `pasto ARGS` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = ["pasto", *args]
    try:
        main()
    except SystemExit as done:
        os._exit(int(done.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def finish(child: int) -> int:
    """Exit code; -9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float) -> int:
    """Let a child run for a while, then kill it; its exit code."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return finish(child)


def result(run: Path) -> tuple[bytes, list[dict[str, object]]]:
    """What must not depend on kills: the adapter's bytes, and history but for the clock."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return (run / "adapter" / "adapter.safetensors").read_bytes(), [
        line | {"seconds": 0} for line in lines
    ]


def runs_of(folder: Path) -> list[Path]:
    """Run folders."""
    return sorted(p for p in (folder / "runs").glob("*") if p.is_dir() and not p.is_symlink())


def begun(folder: Path) -> Path | None:
    """The run of a folder, if there is one that can be gone on with: its recipe is written last."""
    found = runs_of(folder)
    return found[0] if found and (found[0] / "recipe.yaml").exists() else None


def moments() -> None:
    """One run as it is, then `count` that are killed and resumed."""
    recipe, root, seed, count, *changes = sys.argv[1:]
    command = ("train", recipe, *changes)
    rng = random.Random(int(seed))
    whole = Path(root) / "whole"
    whole.mkdir(parents=True)
    started = time.monotonic()
    code = finish(start(whole, *command))
    length = time.monotonic() - started
    expected = result(runs_of(whole)[0])
    print(json.dumps({"code": code, "seconds": length, "steps": len(expected[1])}), flush=True)
    for number in range(int(count)):
        folder = Path(root) / f"killed{number}"
        folder.mkdir()
        at = [rng.uniform(0, length)]
        codes = [kill_after(start(folder, *command), at[0])]
        run = begun(folder)
        if run is None:
            print(json.dumps({"at": at, "codes": codes, "begun": False}), flush=True)
            continue
        had = (run / "checkpoint" / "state.safetensors").exists()
        if number % 2:  # twice
            at.append(rng.uniform(0, length))
            codes.append(kill_after(start(folder, "train", "--resume", str(run)), at[1]))
        finished = (run / "adapter" / "pasto.json").exists() and not (
            run / "checkpoint" / "start.safetensors"
        ).exists()
        if finished:  # it was faster
            codes.append(code)
        else:
            codes.append(finish(start(folder, "train", "--resume", str(run))))
        same = result(run) == expected
        left = sorted(p.name for p in run.rglob(".*"))
        print(
            json.dumps(
                {"at": at, "codes": codes, "begun": True, "had": had, "same": same, "left": left}
            ),
            flush=True,
        )
        shutil.rmtree(folder) if same else None
