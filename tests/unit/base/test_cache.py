"""The cache: where it is, and that a machine without one costs time only."""

import errno
import os
from pathlib import Path

import pytest

from pasto_cli.base import cache
from pasto_cli.base.errors import PastoError


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_the_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PASTO_CACHE", "~/c")
    assert cache.cache_dir() == tmp_path / "c"
    monkeypatch.setenv("PASTO_CACHE", "")
    assert cache.cache_dir() == tmp_path / ".cache" / "pasto"
    monkeypatch.setenv("PASTO_CACHE", "~nobody-here/c")
    with pytest.raises(PastoError, match="PASTO_CACHE=~nobody-here/c: no such folder"):
        cache.cache_dir()


def test_without_a_home_there_is_none(monkeypatch):
    monkeypatch.delenv("PASTO_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.cache_dir() is None and cache.cached_file("svd", "x") is None
    cache.keep(None, lambda path: pytest.fail("written"))
    assert "PASTO_CACHE" in (cache.why_unusable("gguf") or "")


def test_a_file_in_its_place_is_a_mistake(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "file"))
    with pytest.raises(PastoError) as error:
        cache.why_unusable("gguf")
    assert str(tmp_path / "file") in error.value.message and "PASTO_CACHE" in error.value.hint
    cache.keep(cache.cached_file("svd", "x"), lambda path: path.write_text("x"))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_said_and_nothing_is_lost(monkeypatch, tmp_path, code):
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "c"))

    def refuse(self, *args, **options):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = cache.why_unusable("gguf")
    assert said and str(tmp_path / "c") in said and os.strerror(code) in said
    assert "PASTO_CACHE" in said
    cache.keep(cache.cached_file("svd", "x"), lambda path: path.write_text("x"))
