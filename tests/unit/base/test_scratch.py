"""Names of what is being written: no two writers share one, and what the dead left goes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from pasto_cli.base.files import replace_file, replace_folder
from pasto_cli.base.scratch import clear_stale, is_dead, scratch_for, this_process


def dead():
    """A process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return f"{this_process().partition('-')[0]}-{child.pid}"


def test_every_writer_has_a_name_of_its_own(tmp_path):
    names = {scratch_for(tmp_path / "x") for _ in range(100)}
    assert len(names) == 100 and all(name.parent == tmp_path for name in names)
    long = scratch_for(tmp_path / ("ä" * 120))  # 240 bytes; a name has 255
    long.write_text("x")


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path):
    gone, now = dead(), time.time()
    for name, age in {
        ".x.part": 0,  # of an earlier version
        f".x.part-{gone}-0": 0,
        f".x.part-{this_process()}-7": 9e9,
        ".x.part-otherbox-1-0": 3600,
        ".x.part-otherbox-2-0": 90_000,
        f".x.part-notes.part-{gone}-0": 9e9,  # another file's
        ".xy.part": 0,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("a")
        os.utime(tmp_path / name, (now - min(age, 10**8),) * 2)
    clear_stale(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [
            f".x.part-{this_process()}-7",
            ".x.part-otherbox-1-0",
            f".x.part-notes.part-{gone}-0",
            ".xy.part",
        ]
    )
    clear_stale(tmp_path / "none" / "x")


def test_who_is_dead():
    assert is_dead(this_process()) is False and is_dead(dead()) is True
    assert is_dead("otherbox-1") is None


@pytest.mark.parametrize("folder", [True, False])
def test_two_writers_of_one_place_never_mix(tmp_path, folder):
    """Each writes slowly, both of its files; what stands there is always whole."""
    path, seen, errors = tmp_path / "x", set(), []

    def write(text):
        def make(scratch):
            if not folder:
                scratch.write_text(text * 3)
                return
            scratch.mkdir()
            for name in "abc":
                (scratch / name).write_text(text)
                time.sleep(0.001)

        try:
            for _ in range(10):
                replace_folder(path, make) if folder else replace_file(path, make)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in "123"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    text = "".join((path / n).read_text() for n in "abc") if folder else path.read_text()
    seen.add(text)
    assert not errors and seen <= {"111", "222", "333"} and os.listdir(tmp_path) == ["x"]
