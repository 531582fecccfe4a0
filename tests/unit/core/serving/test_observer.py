"""The access log, the figures at /metrics, and limits; over HTTP on a socket of this machine."""

import json
import socket
import threading
import time
import urllib.request

import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from pasto_cli.core.serving.app import Rules, create_app
from pasto_cli.core.serving.positions import Positions

HELLO = [{"role": "user", "content": "Hello"}]
SHORT = {"messages": HELLO, "temperature": 0, "max_tokens": 5}
LONG = {"messages": HELLO, "temperature": 0, "max_tokens": 4000}


class Server:
    """An application behind uvicorn, in a thread."""

    def __init__(self, engine, **rules):
        self.log = []
        self.engine = engine
        positions = Positions({"a": None, "b": -0.5})
        app = create_app(engine, positions, "random:llama", Rules(log=self.log.append, **rules))
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([listening],))
        self.thread.start()
        self.client = openai.OpenAI(
            base_url=self.address + "/v1", api_key="-", max_retries=0, timeout=60
        )

    def get(self, path):
        with urllib.request.urlopen(self.address + path) as reply:
            return reply.read().decode()

    def figures(self):
        """Sample -> value, labels in its name."""
        return {
            sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def until(self, true):
        """Wait for something that another thread does."""
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self):
        self.uvicorn.should_exit = True
        self.thread.join()


@pytest.fixture()
def start(serving):
    """Factory of servers: limits of the engine, and rules."""
    servers = []

    def make(limits=None, **rules):
        servers.append(Server(serving(**(limits or {})), **rules))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_every_request_is_logged_and_counted(start):
    server = start()
    create = server.client.chat.completions.create
    whole = create(model="a@0.5+b@-1", **SHORT)
    stream = list(create(model="base", n=2, stream=True, **SHORT))
    with pytest.raises(openai.BadRequestError):
        create(model="c", **SHORT)
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("c")
    server.get("/health")
    with pytest.raises(urllib.error.HTTPError):
        server.get("/" + "x" * 3000 + "?key=secret")
    server.until(lambda: len(server.log) == 6)
    entries = [json.loads(json.dumps(entry)) for entry in server.log]
    first, second, refused, missing, health, unknown = entries
    assert first["id"] == whole._request_id and len({entry["id"] for entry in entries}) == 6
    assert (first["path"], first["status"]) == ("/v1/chat/completions", 200)
    assert (first["model"], second["model"]) == ("a@0.5+b@-1", "base")
    prompt = whole.usage.prompt_tokens
    assert (first["prompt_tokens"], first["completion_tokens"]) == (prompt, 5)
    assert (second["prompt_tokens"], second["completion_tokens"]) == (prompt, 10)
    assert len(stream) > 2 and 0 < first["seconds"] < 60 and first["time"].endswith("+00:00")
    assert (refused["status"], refused["error"]) == (400, "unknown_dial")
    assert (missing["status"], health["status"], unknown["status"]) == (404, 200, 404)
    assert len(unknown["path"]) == 200
    assert "Hello" not in str(entries) and "secret" not in str(entries)

    figures = server.figures()
    path = "/v1/chat/completions"
    assert figures[f"pasto_requests_total {path} 200"] == 2
    assert figures[f"pasto_requests_total {path} 400"] == 1
    assert figures["pasto_requests_total other 404"] == 1
    assert figures["pasto_requests_total /v1/models/{name:path} 404"] == 1
    assert figures["pasto_prompt_tokens_total"] == 2 * prompt
    assert figures["pasto_completion_tokens_total"] == 15
    turned = {name: value for name, value in figures.items() if "dial_requests_total" in name}
    assert turned == {
        "pasto_dial_requests_total a positive": 1,
        "pasto_dial_requests_total b negative": 1,
        "pasto_dial_requests_total base none": 1,
    }
    assert figures["pasto_time_to_first_token_seconds_count"] == 3
    assert figures["pasto_time_per_output_token_seconds_count"] == 3
    mean = figures["pasto_time_per_output_token_seconds_sum"] / 3
    assert 0 < mean < figures["pasto_time_to_first_token_seconds_sum"] + first["seconds"]
    assert (figures["pasto_rows"], figures["pasto_queue_length"]) == (0, 0)


def test_a_client_that_goes_away_frees_its_row(start):
    server = start({"rows": 1}, log_prompts=True)
    stream = server.client.chat.completions.create(model="a", stream=True, logprobs=True, **LONG)
    next(chunk for chunk in stream if chunk.choices[0].logprobs)
    waiting = threading.Thread(
        target=lambda: server.client.completions.create(model="b", prompt="x", max_tokens=2)
    )
    waiting.start()
    server.until(lambda: server.engine.occupancy() == (1, 1))
    figures = server.figures()
    assert (figures["pasto_rows"], figures["pasto_queue_length"]) == (1, 1)
    stream.close()
    waiting.join()  # its turn came long before 4000 tokens
    server.until(lambda: server.engine.occupancy() == (0, 0) and len(server.log) == 3)
    gone = next(entry for entry in server.log if entry["path"].startswith("/v1/chat"))
    assert gone["status"] == 499 and 0 < gone["completion_tokens"] < 4000
    assert gone["prompts"] == [[{"role": "user", "content": "Hello"}]]
    assert [entry["prompts"] for entry in server.log if entry.get("model") == "b@-0.5"] == [["x"]]


def test_time_is_limited(start):
    server = start(timeout=0.4)
    create = server.client.chat.completions.create
    with pytest.raises(openai.InternalServerError, match="the time that this server") as late:
        create(model="a", **LONG)
    assert late.value.status_code == 504 and late.value.code == "timeout"
    pieces = []
    with pytest.raises(openai.APIError, match="the time that this server"):
        pieces.extend(create(model="a", stream=True, **LONG))
    server.until(lambda: server.engine.occupancy() == (0, 0) and len(server.log) == 2)
    assert [entry["error"] for entry in server.log] == ["timeout"] * 2
    # A body that never comes to its end.
    with socket.create_connection(server.address.removeprefix("http://").split(":")) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_tokens_are_limited(start):
    server = start({"prompt_tokens": 50, "answer_tokens": 3, "max_tokens": 9})
    complete = server.client.completions.create
    assert complete(model="a", prompt="x", max_tokens=3).usage.completion_tokens == 3
    usual = server.client.chat.completions.create(
        model="a", messages=[{"role": "user", "content": ""}]
    )
    assert usual.usage.completion_tokens == 3
    for more, words in (
        ({"prompt": "x", "max_tokens": 4}, "at most 3 are given"),
        ({"prompt": "x" * 60, "max_tokens": 2}, "at most 50 are taken"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            complete(model="a", **more)
