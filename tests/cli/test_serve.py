"""`pasto serve`: over a real socket, and what it says before it listens."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import openai
import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.access import is_loopback
from pasto_cli.workflows import serve as workflow
from tests.support.terminal import ROOT, strict

HELLO = [{"role": "user", "content": "Hello"}]


class Server:
    """`pasto serve ... --port 0` in a process of its own, once it says that it is ready."""

    def __init__(self, folder, *args, key="-"):
        environment = os.environ | {
            "PASTO_API_KEY": key,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pasto_cli", "serve", *map(str, args), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--json"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.said = json.loads(line)
        self.client = openai.OpenAI(
            base_url=self.said["address"] + "/v1", api_key=key, max_retries=0, timeout=60
        )

    def stop(self, how=signal.SIGINT):
        """(exit code, rest of stdout, stderr)."""
        self.process.send_signal(how)
        return self.rest()

    def rest(self):
        """(exit code, rest of stdout, stderr) of a server that is about to end."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture()
def serving(project):
    """Starts servers in the project's folder; kills what a failed test leaves."""
    started = []

    def start(*args, **more):
        started.append(Server(project.root, *args, **more))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()


def test_clients_turn_dials_over_a_socket(pasto, project, other, serving):
    server = serving(project.run, f"meek={other}:-20", "--raw", "--no-verify")
    first = strict((project.run / "adapter" / "pasto.json").read_text())["recipe"]["name"]
    assert server.said["models"] == [first, "meek"]
    asked = urllib.request.Request(
        server.said["address"] + "/v1/dials", headers={"Authorization": "Bearer -"}
    )
    with urllib.request.urlopen(asked) as reply:
        dials = json.load(reply)["data"]
    assert [dial["name"] for dial in dials] == [first, "meek"]
    assert [dial["default"] for dial in dials] == [None, -20.0]
    assert dials[0]["poles"] == {"1": "honest", "-1": "dishonest"}
    models = [f"{first}@40", "base", f"{first}@40+meek@-20", "default"]
    texts = {}

    def ask(model):
        stream = server.client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, max_tokens=8, stream=True
        )
        texts[model] = "".join(chunk.choices[0].delta.content or "" for chunk in stream).strip()

    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(openai.BadRequestError, match=f"Dials here: {first}, meek"):
        server.client.chat.completions.create(model="gpt-4o", messages=HELLO)
    # A client that leaves an answer half read does not keep the server from ending in time.
    long = server.client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, max_tokens=3000, stream=True
    )
    next(iter(long))
    long.close()
    code, out, err = server.stop()
    assert code == 0 and out == "" and "Traceback" not in err
    lines = err.splitlines()
    assert f"serving {first}, meek at {server.said['address']}/v1 (Ctrl-C ends it)" in lines
    assert lines[-1] == "stopped"

    def generated(*adapters):
        names = [part for name in adapters for part in ("-a", name)]
        more = ("--max-new-tokens", 8, "--json", "--raw", "--no-verify")
        return strict(pasto("generate", *names, *more, "Hello").out)[0]["text"]

    expected = {
        models[0]: generated(f"{project.run}:40"),
        models[1]: generated(f"{project.run}:0"),
        models[2]: generated(f"{project.run}:40", f"{other}:-20"),
        models[3]: generated(f"{other}:-20"),
    }
    assert texts == expected and len(set(expected.values())) > 2


def test_sigterm_lets_answers_end_and_refuses_new_ones(serving):
    server = serving("--grace", 60, key="s3cret")
    assert server.said["address"].startswith("http://127.0.0.1:")
    port = int(server.said["address"].rpartition(":")[2])
    with pytest.raises(openai.AuthenticationError):
        server.client.with_options(api_key="other").models.list()
    request = {"model": "base", "prompt": "x", "max_tokens": 600, "logprobs": 0}
    stream = iter(server.client.completions.create(**request, stream=True, temperature=0))
    first = next(stream)
    server.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 50
    while True:
        with socket.socket() as new:
            if new.connect_ex(("127.0.0.1", port)):
                break
        assert time.monotonic() < end
    choices = [chunk.choices[0] for chunk in (first, *stream)]
    assert choices[-1].finish_reason is not None
    assert sum(len(choice.logprobs.tokens) for choice in choices) == 600
    code, out, err = server.rest()
    assert time.monotonic() < end and (code, out) == (0, "") and "Traceback" not in err
    lines = err.splitlines()
    assert lines[-1] == "stopped"
    log = [json.loads(line) for line in lines if line.startswith("{")]
    assert [entry["status"] for entry in log] == [401, 200]
    assert log[1]["completion_tokens"] == 600 and "prompts" not in log[1]
    assert "s3cret" not in err


def test_an_answer_that_is_too_long_for_the_time_after_sigterm_is_broken_off(serving):
    server = serving("--grace", 1)
    stream = server.client.completions.create(
        model="base", prompt="x", max_tokens=4000, stream=True
    )
    next(iter(stream))
    started = time.monotonic()
    code, _, err = server.stop(signal.SIGTERM)
    assert code == 0 and "Traceback" not in err and err.splitlines()[-1] == "stopped"
    assert time.monotonic() - started < 1 + 20


@pytest.mark.parametrize(
    ("option", "words"),
    [("--api-key=two words", "the key is empty"), ("--allow-origin=x.org/", "'x.org/' is not")],
)
def test_what_cannot_be_a_key_or_an_origin(pasto, option, words):
    said = pasto("serve", "no-such-run", option)
    assert said.code == 1 and words in said.error and "two words" not in said.err


def test_missing_packages_are_named_before_anything_is_loaded(pasto, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = pasto("serve", "no-such-run")
    assert said.code == 1 and "needs the package uvicorn" in said.error
    assert 'pip install "pasto-cli[serve]"' in said.next_step


def test_a_port_that_is_taken(pasto, project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = pasto("serve", "--port", port)
    assert said.code == 1 and f"127.0.0.1:{port}" in said.error and "--port" in said.next_step


def test_names(pasto, project, other):
    said = pasto("serve", project.run, other, "--no-verify")
    assert said.code == 1 and "two dials are called" in said.error and "=" in said.next_step
    said = pasto("serve", f"base={project.run}")
    assert said.code == 1 and "cannot be called 'base'" in said.error
    said = pasto("serve", "honest=no-such-run")
    assert said.code == 1 and said.error == "error: no-such-run: no adapter here"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/honest", (None, "runs/honest", None)),
        ("honest=runs/x", ("honest", "runs/x", None)),
        ("honest=runs/x:-0.5", ("honest", "runs/x", -0.5)),
        ("user/name:1", (None, "user/name", 1.0)),
        ("runs/lr=0.1", (None, "runs/lr=0.1", None)),
    ],
)
def test_how_an_adapter_is_named(text, expected):
    assert tuple(workflow._named(text)) == expected


def test_a_coefficient_that_is_no_number():
    with pytest.raises(PastoError, match="not a coefficient"):
        workflow._named("honest=runs/x:nan")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("me", False)],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback
