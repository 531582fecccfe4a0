"""A machine without a network reads its cache at once."""

import socket
import time

import pytest
from huggingface_hub import constants

from pasto_cli.base import hub_reach


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_reach, "getproxies", dict)
    hub_reach.in_reach.cache_clear()
    yield
    hub_reach.in_reach.cache_clear()


def closed_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_without_a_network_the_cache_alone_is_read_and_that_is_said_once(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    said = []
    began = time.monotonic()
    hub_reach.prefer_cache_off_network(said.append)
    hub_reach.prefer_cache_off_network(said.append)
    assert constants.is_offline_mode() and time.monotonic() - began < hub_reach.SECONDS
    assert said == ["127.0.0.1 cannot be reached: looking in the local cache"]


def test_a_hub_that_answers_is_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub_reach.prefer_cache_off_network(pytest.fail)
        assert not constants.is_offline_mode()


def test_behind_a_proxy_the_client_finds_out(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(hub_reach, "getproxies", lambda: {"https": "http://proxy:3128"})
    hub_reach.prefer_cache_off_network(pytest.fail)
    assert not constants.is_offline_mode()
