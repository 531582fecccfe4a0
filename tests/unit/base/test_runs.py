"""Run folders: the last finished one."""

import errno
import os
from pathlib import Path

import pytest

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError


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


@pytest.fixture()
def text_file(tmp_path):
    """Runs with a `latest` that is a text file."""
    (tmp_path / "one" / "adapter").mkdir(parents=True)
    (tmp_path / "one" / "adapter" / "pasto.json").write_text("{}")
    (tmp_path / "latest").write_text("one\n")
    return tmp_path


def test_a_text_file_is_followed_wherever_it_is_named(text_file, monkeypatch):
    for name in ("latest", "latest/adapter"):
        assert runs.adapter_folder(str(text_file / name)) == text_file / "one" / "adapter"
    monkeypatch.setenv("HOME", str(text_file))
    assert runs.followed("~/latest") == text_file / "one"
    assert runs.followed(text_file / "one") == text_file / "one"
    assert runs.followed("alice/latest") == Path("alice/latest")


@pytest.mark.parametrize(
    "raw", [b"\xff\xfea", b"", b"none", b"../one", b"/", b"one/adapter", b".", b"x" * 5000, b"\0"]
)
def test_a_damaged_one_is_named(text_file, raw):
    (text_file / "latest").write_bytes(raw)
    with pytest.raises(PastoError, match="latest: (damaged|cannot be read)") as error:
        runs.latest_run(text_file)
    assert "--adapter" in error.value.hint


def test_a_link_to_a_run_that_is_gone_is_said(tmp_path):
    (tmp_path / "latest").symlink_to("gone")
    with pytest.raises(PastoError, match="gone is not there any more"):
        runs.latest_run(tmp_path)


def test_runs_of_one_moment_have_folders_of_their_own(tmp_path):
    made = {runs.new_run("x", tmp_path / "runs") for _ in range(5)}
    assert len(made) == 5
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PastoError, match="--out|cannot") as error:
        runs.new_run("x", tmp_path / "file")
    assert "--out" in error.value.hint
