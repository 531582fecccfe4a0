"""Run folders: the last finished one."""

import errno
import os
from pathlib import Path

from pasto_cli.base import runs


def test_latest_is_a_link_or_else_a_text_file(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    runs.mark_latest(tmp_path / "one")
    assert (tmp_path / "latest").is_symlink()
    assert runs.latest_run(tmp_path) == (tmp_path / "one").resolve()

    def refuse(*_args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    runs.mark_latest(tmp_path / "two")
    assert not (tmp_path / "latest").is_symlink()
    assert runs.latest_run(tmp_path) == (tmp_path / "two").resolve()
    assert sorted(os.listdir(tmp_path)) == ["latest", "one", "two"]
