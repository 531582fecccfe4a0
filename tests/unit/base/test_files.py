"""Files and folders that are replaced whole or not at all, whatever a kill left of the last
time."""

import errno
import os

import pytest
from safetensors import SafetensorError

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited, replace_folder
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.checkpoint import Snapshot


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


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, error):
    import torch

    checkpoint.folder_of(tmp_path).mkdir()
    checkpoint.save_state(tmp_path, Snapshot({"step": 1}, {"x": torch.ones(2)}))

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(PastoError, match="No space left"):
        checkpoint.save_state(tmp_path, Snapshot({"step": 2}, {"x": torch.zeros(2)}))
    kept = checkpoint.load_state(tmp_path)
    assert (
        kept is not None
        and kept.facts == {"step": 1}
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
