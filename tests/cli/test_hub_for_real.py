"""push, pull, verify and generate against a Hub over real HTTP: `HF_ENDPOINT`, each command a
process of its own."""

import os

import pytest

from tests.support.forks import run_forked
from tests.support.hub_server import OWNER, READER, HubServer
from tests.support.terminal import Said, contents, strict

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture()
def hub():
    server = HubServer()
    yield server
    server.server.shutdown()


@pytest.fixture()
def command(hub, project, tmp_path):
    """`pasto ARGS` with a token, in the folder of a finished run."""

    def run(*args, token=OWNER):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        home = tmp_path / ("home" if token == OWNER else "other")
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "COLUMNS": "110",
        }
        done = run_forked(
            "pasto_cli.__main__:main", args, cwd=project.root, env=environment, timeout=180
        )
        said = Said(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in said.err, said.err
        for secret in (OWNER, READER):
            assert secret not in said.out + said.err
        return said

    return run


def test_what_is_pushed_comes_back_the_same_and_works(hub, command, project):
    pushed = command("push", "alice/dial", "--private")
    assert pushed.code == 0, pushed.err
    assert f"{hub.url}/alice/dial/commit/" in pushed.out
    repo = hub.repos["alice/dial"]
    assert repo["private"] and set(repo["files"]) == {
        "adapter.safetensors",
        "pasto.json",
        "README.md",
    }
    assert (
        repo["files"]["adapter.safetensors"]
        == (project.run / "adapter" / "adapter.safetensors").read_bytes()
    )
    assert not any(
        token.encode() in raw for raw in repo["files"].values() for token in (OWNER, READER)
    )
    assert b"alice/dial" in repo["files"]["README.md"]

    pulled = command("pull", "alice/dial", "--out", "got")
    assert pulled.code == 0, pulled.err
    assert contents(project.root / "got") == repo["files"]
    by_id = command("verify", "alice/dial", "--json")
    assert by_id.code == 0 and strict(by_id.out)["differences"] == {"-1": 0.0, "0": 0.0, "1": 0.0}

    strangers = command("pull", "alice/dial", "--out", "other", token=READER)
    assert (
        strangers.code == 1 and "no such repository on the Hub, or it is private" in strangers.error
    )
    assert not (project.root / "other").exists()

    # What was damaged on the way is found.
    repo["files"]["adapter.safetensors"] = repo["files"]["adapter.safetensors"][:-8] + b"\0" * 8
    repo["commits"] += 1
    damaged = command("verify", "alice/dial")
    assert damaged.code == 1 and "not the file that pasto.json was written with" in damaged.error


def test_a_connection_cut_in_the_middle_leaves_nothing_half_done(hub, command):
    hub.cut = 1
    assert command("push", "alice/dial").code == 0  # tried again by itself
    assert ("PUT", hub.seen[[m for m, _ in hub.seen].index("PUT")][1]) in hub.seen and hub.repos[
        "alice/dial"
    ]["commits"] == 1
    hub.cut = 1000
    hub.large.clear()
    failed = command("push", "alice/other")
    assert failed.code == 1 and "cannot be reached" in failed.error and failed.next_step
    assert hub.repos["alice/other"]["files"] == {}
    hub.cut = 0
    assert command("push", "alice/other").code == 0
    assert set(hub.repos["alice/other"]["files"]) == {
        "adapter.safetensors",
        "pasto.json",
        "README.md",
    }


def test_missing_rights_are_clear_lines(hub, command):
    reader = command("push", "alice/dial", token=READER)
    assert reader.code == 1 and "no permission to write to alice/dial" in reader.error
    elsewhere = command("push", "carol/dial")
    assert elsewhere.code == 1 and "no permission" in elsewhere.error
    assert hub.repos == {}
    missing = command("pull", "alice/nothing")
    assert missing.code == 1 and "no such repository" in missing.error


def test_a_repository_that_holds_no_adapter_is_refused(hub, command):
    hub.repos["alice/model"] = {"private": False, "files": {"config.json": b"{}"}, "commits": 1}
    said = command("pull", "alice/model")
    assert said.code == 1 and "not an adapter of this format" in said.error


def test_a_gguf_file_on_the_hub_is_fetched_by_its_name(hub, command):
    """Fetched from the right place, and read: this one holds no model."""
    files = {"folder/m.gguf": b"not a model"}
    hub.repos["alice/model"] = {"private": False, "files": files, "commits": 1}
    said = command("train", "tiny.yaml", "--set", "model.source=hf:alice/model/folder/m.gguf")
    assert said.code == 1 and "m.gguf" in said.error and "neither a folder" not in said.error
    assert any(verb == "GET" and path.endswith("folder/m.gguf") for verb, path in hub.seen)
    missing = command("train", "tiny.yaml", "--set", "model.source=hf:alice/model/other.gguf")
    assert missing.code == 1 and missing.next_step
    wrong = command("train", "tiny.yaml", "--set", "model.source=hf:alice/m.gguf")
    assert wrong.code == 1 and "Write hf:ORG/NAME/FILE.gguf" in wrong.next_step
