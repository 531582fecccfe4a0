"""Standard input, output and error that are closed, full, without a reader or no text."""

import os
import subprocess
import sys

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import streams

RECIPE = "name: x\nmodel: {source: 'random:llama', system: '你好'}\npairs: {words: [a, b]}\n"


def pasto(folder, args: str, redirect: str = "", **variables: str):
    """`pasto ARGS` in a process of its own, its streams as the shell makes them."""
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = f'set -o pipefail; "{sys.executable}" -m pasto_cli {args} {redirect}'
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, env=environment, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_behind_stdout(tmp_path):
    done = pasto(tmp_path, "make-pairs a b --count 9", "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.count(b"error:") == 1
    assert b"standard output cannot be written: No space left" in done.stderr
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 9  # written all the same


@pytest.mark.parametrize("redirect", ["| true", ">&-", ">&- 2>&-", "2>&1 | true"])
def test_nobody_reads(tmp_path, redirect):
    done = pasto(tmp_path, "recipe r.yaml", redirect)
    assert done.returncode == 0 and not done.stderr and not done.stdout


def test_a_failure_keeps_its_exit_code_without_a_reader(tmp_path):
    assert pasto(tmp_path, "recipe nowhere.yaml", "2>&1 | true").returncode == 1


def test_a_console_with_other_characters(tmp_path):
    done = pasto(tmp_path, "recipe r.yaml", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and b'system: "\\u4F60\\u597D"' in done.stdout


def test_bytes_on_the_command_line_that_are_no_text(tmp_path):
    done = pasto(tmp_path, "make-pairs $'caf\\xe9' b")
    assert done.returncode == 1 and b"argument 2 is not UTF-8" in done.stderr
    assert not (tmp_path / "pairs.jsonl").exists()


def test_closed_stdin(tmp_path):
    done = pasto(tmp_path, "generate --stdin", "<&-")
    assert done.returncode == 1 and b"there is no standard input" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_an_error_says_that_what_was_shown_before_it_was_lost(monkeypatch):
    """Such as the table of a certificate that failed."""
    full = open("/dev/full", "w")  # kept, or it would be closed under the other
    monkeypatch.setattr(sys, "stdout", streams.Output(full))
    print("a table")
    found = streams.with_lost_output(PastoError("it failed", "Try again."))
    assert found.message.startswith("it failed; and standard output cannot be written")
    assert found.hint == "Try again."
