"""`~` in paths, wherever they come from."""

from pathlib import Path

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.base.paths import expanded


def test_a_home_is_put_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/runs") == Path("/home/me/runs") and expanded(Path("~")) == Path("/home/me")
    for path in ("runs/~", "a~b", "/x"):
        assert expanded(path) == Path(path)


def test_a_user_who_is_not_there_is_named():
    with pytest.raises(PastoError, match=r"~nobody-here/x: no such folder \(there is no user nobo"):
        expanded("~nobody-here/x")


def test_without_a_home_the_variable_is_named(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(PastoError) as error:
        expanded("~/runs")
    assert "~/runs" in error.value.message and "HOME" in error.value.hint
