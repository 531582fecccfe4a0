"""Processes of their own that need not load torch again: forked from a server that has loaded it
and computed nothing.

huggingface_hub is not loaded there, since it reads the environment when it is: each process has
its own."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path


def fork_server() -> ForkServerContext:
    """The context of these processes; its server starts with the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    return context


def run_forked(
    entry: str,
    args: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    threads: int = 1,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with captured text, for a function without arguments that reads sys.argv.

    Args:
        entry: `package.module:function`.
        args: Of the command line.
        cwd: Folder where it runs.
        env: Its whole environment.
        timeout: Seconds after which it is killed.
        threads: Of torch, which has read its environment variables already.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = (entry, list(args), str(cwd), dict(env), threads, str(out), str(err))
        process = fork_server().Process(target=_run, args=given)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([entry, *args], timeout)
        texts = (path.read_text(encoding="utf-8") for path in (out, err))
        return subprocess.CompletedProcess([entry, *args], process.exitcode, *texts)


def _run(
    entry: str, args: list[str], cwd: str, env: dict[str, str], threads: int, out: str, err: str
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [entry, *args]
    import torch

    torch.set_num_threads(threads)
    module, _, function = entry.partition(":")
    getattr(importlib.import_module(module), function)()
