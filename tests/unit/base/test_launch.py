"""Variables of a launcher, whole and broken."""

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.base.launch import world_size

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture()
def launcher(monkeypatch):
    def set_(variables):
        for name in WHOLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": " "}, {"RANK": "7"}])
def test_one_process(launcher, variables):
    launcher(variables)
    assert world_size() == 1


def test_two_processes(launcher):
    launcher(WHOLE)
    assert world_size() == 2


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, "", "x", "-1", "٣"])
def test_the_broken_one_is_named(launcher, name, value):
    launcher({key: x for key, x in WHOLE.items() if key != name})
    if value is not None:
        launcher(WHOLE | {name: value})
        if name == "MASTER_ADDR" and value:
            assert world_size() == 2  # any text may be a host
            return
    with pytest.raises(PastoError, match=name) as error:
        world_size()
    assert "unset WORLD_SIZE" in error.value.hint


@pytest.mark.parametrize("size", ["abc", "0", "-3", "2.0", "1e3"])
def test_a_size_that_is_no_number_is_named(launcher, size):
    launcher({"WORLD_SIZE": size})
    with pytest.raises(PastoError, match=f"WORLD_SIZE='{size}'"):
        world_size()
