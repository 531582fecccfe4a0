"""Files and folders that are replaced whole or not at all, whatever a kill left of the last
time."""

import errno
import math
import os
import random
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pasto_cli.base import files
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited, recover, replace_file, replace_folder
from pasto_cli.core.records.training import TrainingState
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.checkpoint import Snapshot
from tests.support.killing import killed_at, killed_between_renames


def fill(text):
    def write(folder):
        folder.mkdir()
        (folder / "a").write_text(text)

    return write


def test_a_folder_is_replaced_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "x"
    for text in ("one", "two"):
        replace_folder(path, fill(text))
        assert (path / "a").read_text() == text and os.listdir(tmp_path) == ["x"]


def test_what_a_kill_left_is_cleared_away(tmp_path):
    path = tmp_path / "x"
    fill("old")(tmp_path / ".x.old")  # killed after the first rename: the only copy
    fill("half")(tmp_path / ".x.part")

    def fails(_folder):
        assert (path / "a").read_text() == "old"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PastoError, match="No space left"):
        replace_folder(path, fails)
    assert (path / "a").read_text() == "old" and os.listdir(tmp_path) == ["x"]
    fill("older")(tmp_path / ".x.old")  # killed after the second rename
    replace_folder(path, fill("new"))
    assert (path / "a").read_text() == "new" and os.listdir(tmp_path) == ["x"]


def test_a_link_is_replaced_not_followed(tmp_path):
    fill("kept")(tmp_path / "target")
    (tmp_path / "x").symlink_to("target")
    replace_folder(tmp_path / "x", fill("new"))
    assert (tmp_path / "target" / "a").read_text() == "kept" and (
        tmp_path / "x" / "a"
    ).read_text() == "new"


def state_at(step):
    """State of a training after some steps."""
    return TrainingState(
        epoch=0,
        step=step,
        total=9,
        best_loss=math.inf,
        best_epoch=0,
        epochs_without_gain=0,
        order=random.Random(0).getstate(),
        budget=512,
        first_budget=512,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, error):
    import torch

    checkpoint.folder_of(tmp_path).mkdir()
    checkpoint.save_state(tmp_path, Snapshot(state_at(1), {"x": torch.ones(2)}))

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(PastoError, match="No space left"):
        checkpoint.save_state(tmp_path, Snapshot(state_at(2), {"x": torch.zeros(2)}))
    kept = checkpoint.load_state(tmp_path)
    assert (
        kept is not None
        and kept.state == state_at(1)
        and os.listdir(checkpoint.folder_of(tmp_path)) == ["state.safetensors"]
    )


def test_pipes_are_read_and_large_files_are_not(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if os.fork() == 0:
        pipe.write_text("name: x")
        os._exit(0)
    assert read_limited(pipe, 100) == "name: x"
    os.wait()
    (tmp_path / "large").write_text("x" * 101)
    with pytest.raises(PastoError, match="larger than"):
        read_limited(tmp_path / "large", 100)


def whole(path):
    """What a reader finds: the text of a folder that `two_files` wrote, both files of it."""
    texts = {(path / name).read_text() for name in ("a", "b")}
    assert len(texts) == 1 and sorted(os.listdir(path)) == ["a", "b"]
    return texts.pop()


def two_files(text):
    def write(folder):
        folder.mkdir()
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    return write


@pytest.mark.parametrize("moment", range(7))
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path, moment):
    path = tmp_path / "x"
    two_files("old")(path)
    killed_at(moment, lambda: replace_folder(path, two_files("new")))
    recover(path)
    assert whole(path) in ("old", "new")
    replace_folder(path, two_files("next"))
    assert whole(path) == "next" and os.listdir(tmp_path) == ["x"]


def test_after_a_kill_between_the_two_renames_a_reader_finds_the_old_folder(tmp_path):
    path = tmp_path / "x"
    two_files("old")(path)
    killed_between_renames(lambda: replace_folder(path, two_files("new")))
    assert not path.exists()
    recover(path)
    assert whole(path) == "old"


@pytest.mark.parametrize("moment", range(5))
def test_a_first_folder_is_never_seen_half(tmp_path, moment):
    path = tmp_path / "x"
    killed_at(moment, lambda: replace_folder(path, two_files("new")))
    recover(path)
    assert not path.exists()
    replace_folder(path, two_files("next"))
    assert whole(path) == "next" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("moment", range(2))
def test_a_kill_leaves_the_old_file(tmp_path, moment):
    """Of an export that is one file; there is no moment without it."""
    path = tmp_path / "x.gguf"
    path.write_text("old")
    killed_at(moment, lambda: replace_folder(path, lambda new: new.write_text("new")))
    assert path.read_text() == "old"
    replace_folder(path, lambda new: new.write_text("next"))
    assert path.read_text() == "next" and os.listdir(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("times", [1, 3])
def test_a_reader_that_puts_the_old_folder_back_does_not_stop_the_writer(
    tmp_path, monkeypatch, times
):
    path, seen = tmp_path / "x", []
    two_files("old")(path)
    monkeypatch.setattr(files, "PAUSE", 0.0)
    real = Path.rename

    def rename(self, target):
        real(self, target)
        if self == path and len(seen) < times:  # the folder has just been moved away
            recover(path)
            seen.append(whole(path))

    monkeypatch.setattr(Path, "rename", rename)
    replace_folder(path, two_files("new"))
    assert seen == ["old"] * times
    assert whole(path) == "new" and os.listdir(tmp_path) == ["x"]


def test_a_reader_waits_for_a_writer_that_is_alive(tmp_path, monkeypatch):
    path = tmp_path / "x"
    two_files("old")(tmp_path / ".x.old")
    two_files("new")(tmp_path / ".x.part")
    monkeypatch.setattr(files, "LOOKS", 10_000)
    looked = threading.Event()
    monkeypatch.setattr(files.time, "sleep", lambda _seconds: looked.set())

    def finish():
        looked.wait()
        (tmp_path / ".x.part").rename(path)

    writer = threading.Thread(target=finish)
    writer.start()
    recover(path)
    writer.join()
    assert whole(path) == "new"


def test_a_reader_leaves_alone_what_it_cannot_put_back(tmp_path, monkeypatch):
    two_files("old")(tmp_path / ".x.old")
    monkeypatch.setattr(files, "PAUSE", 0.0)

    def refuse(*_args):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        recover(tmp_path / "x")
    assert os.listdir(tmp_path) == [".x.old"]


@pytest.mark.parametrize("name", [".", "..", "/", "a\x00b", "x" * 300, "no/such/folder"])
def test_recovering_any_name_is_harmless(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    recover(Path(name))
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_whole_and_synced(tmp_path, monkeypatch):
    path, synced = tmp_path / "x", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.read_text()), real(file)))
    replace_file(path, lambda scratch: scratch.write_text("one"))
    replace_file(path, lambda scratch: scratch.write_text("two"), sync=True)
    assert path.read_text() == "two" and synced == ["one"] and os.listdir(tmp_path) == ["x"]
    with pytest.raises(PastoError, match=r"cannot write .*x: Error while serializing"):
        replace_file(path, raises(SafetensorError("Error while serializing: I/O error")))
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["x"]


def raises(error):
    def write(scratch):
        scratch.write_text("half")
        raise error

    return write
