"""The Hub says no: real HTTP answers from a local server become clear errors, and the token stays
out of them."""

import errno
import http.server
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from pasto_cli.core.artifact import hub
from tests.support.forks import run_forked

TOKEN = "hf_thisisasecretthatmustnotshow"


def ask_the_hub():
    """What a process of its own does: the Hub's address is read when huggingface_hub is loaded."""
    from pasto_cli.base.errors import PastoError
    from pasto_cli.core.artifact import hub

    direction, folder = sys.argv[1:]
    try:
        if direction == "up":
            hub.upload(Path(folder), "someone/something", "card", "{}", private=True)
        else:
            hub.download("someone/something")
    except PastoError as error:
        print(error)


@pytest.fixture()
def hub_says():
    """Factory of a server that answers every request with one status; returns its address and the
    requests it saw."""
    servers = []

    def make(status):
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                seen.append(
                    (
                        self.command,
                        self.path,
                        self.rfile.read(int(self.headers.get("content-length", 0))),
                    )
                )
                body = json.dumps({"error": "no"}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_POST = do_HEAD = do_PUT = answer

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", seen

    yield make
    for server in servers:
        server.shutdown()


def run(tmp_path, direction, endpoint, token=TOKEN):
    for name in ("adapter.safetensors", "pasto.json"):
        (tmp_path / name).write_text("{}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = run_forked(
        f"{__name__}:ask_the_hub",
        [direction, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert token == "" or token not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "does not accept this token"),
        (403, "no permission to write to someone/something"),
        (500, "Hub"),
    ],
)
def test_upload_refused(tmp_path, hub_says, status, expected):
    endpoint, seen = hub_says(status)
    assert expected in run(tmp_path, "up", endpoint)
    assert seen and seen[0][0] == "POST"


def test_upload_without_token_asks_nothing(tmp_path, hub_says):
    endpoint, seen = hub_says(200)
    assert "no Hub token" in run(tmp_path, "up", endpoint, token="")
    assert seen == []


def test_download_of_what_is_not_there(tmp_path, hub_says):
    endpoint, _ = hub_says(404)
    said = run(tmp_path, "down", endpoint)
    assert "someone/something" in said and "\n" in said.strip()


def test_no_network(tmp_path):
    assert "cannot be reached" in run(tmp_path, "up", "http://127.0.0.1:9")


def answer(status):
    """An answer of whichever HTTP library the client is built on."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def refused(status):
    return HfHubHTTPError("no", response=answer(status))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/c/x"), ("/c/x", "No space", "HF_HOME")),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), ("/c", "denied", "HF_HOME")),
        (OSError(errno.EROFS, "Read-only file system"), ("Read-only", "HF_HOME")),
        (ConnectionResetError(104, "reset"), ("cannot be reached", "connection")),
        (TimeoutError("slow"), ("cannot be reached", "connection")),
        (refused(401), ("token", "401")),
        (refused(403), ("permission to read u/x", "403")),
        (refused(404), ("no such repository", "hf auth login")),
        (refused(413), ("no room", "413")),
        (refused(429), ("too often", "429")),
        (refused(503), ("fault of its own", "503")),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else None,
)
def test_what_went_wrong_is_told_apart(error, words):
    found = str(hub.failure(error, "u/x"))
    assert all(word in found for word in words), found


def test_an_unknown_repository_is_no_bad_token():
    """The Hub answers 401 to a stranger who asks for what is not there."""
    error = RepositoryNotFoundError("no", response=answer(401))
    assert "no such repository" in hub.failure(error, "u/x").message
