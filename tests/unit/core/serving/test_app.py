"""The HTTP interface, asked by the openai client through the ASGI application in this process."""

import asyncio
import json

import httpx2 as httpx
import openai
import pytest

from pasto_cli.core.serving.app import create_app
from pasto_cli.core.serving.engine import Message
from pasto_cli.core.serving.positions import Positions
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.steerer import Mix, NoOpSteerer

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DISTURBANCE = "/v1/disturbance"


@pytest.fixture()
def server(serving):
    """The application on the dials a and b, with b at -0.5 for requests that say nothing."""

    class Server:
        engine = serving()
        app = create_app(engine, Positions({"a": None, "b": -0.5}), "random:llama")

        def http(self):
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            return httpx.AsyncClient(transport=transport, base_url="http://pasto")

        def ask(self, use):
            """What `use(client)` gives, with OpenAI's client."""

            async def run():
                async with self.http() as http:
                    client = openai.AsyncOpenAI(
                        base_url="http://pasto/v1", api_key="-", http_client=http, max_retries=0
                    )
                    return await asyncio.wait_for(use(client), 120)

            return asyncio.run(run())

        def post(self, path, **body):
            """(status, JSON) of a request as it stands."""

            async def run():
                async with self.http() as http:
                    return await asyncio.wait_for(http.post(path, content=json.dumps(body)), 120)

            reply = asyncio.run(run())
            return reply.status_code, reply.json()

        def expected(self, position, tokens=12, prompt="Hello"):
            dials = self.engine.scheduler.dials
            parts = [(dials[name], c) for name, c in position.items()]
            steerer = Mix(parts) if parts else NoOpSteerer()
            return generate(self.engine.lm, steerer, prompt, [1.0], tokens)[0]

    return Server()


@pytest.mark.parametrize(
    ("model", "dial", "position"),
    [
        ("base", None, {}),
        ("default", None, {"b": -0.5}),
        ("a@-0.5", None, {"a": -0.5}),
        ("a@1+b@-1", None, {"a": 1.0, "b": -1.0}),
        ("base", {"a": 2}, {"a": 2.0}),
        ("b", {"a": -1}, {"b": -0.5, "a": -1.0}),
    ],
)
def test_three_ways_to_turn_a_dial(server, model, dial, position):
    def asked(stream):
        more = {} if dial is None else {"extra_body": {"dial": dial}}
        return server.ask(
            lambda client: collected(
                client, model=model, messages=HELLO, stream=stream, **GREEDY, **more
            )
        )

    whole, streamed = asked(False), asked(True)
    assert whole == streamed
    text, model_said, finish = whole
    assert text.strip() == server.expected(position) and finish == "length"
    assert Positions({"a": None, "b": None}).read(model_said) == position


async def collected(client, **request):
    """(text, model, finish reason) of a chat, streamed or not."""
    reply = await client.chat.completions.create(**request)
    if not request["stream"]:
        (choice,) = reply.choices
        assert choice.message.role == "assistant"
        return choice.message.content, reply.model, choice.finish_reason
    chunks = [chunk async for chunk in reply]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text, chunks[0].model, chunks[-1].choices[0].finish_reason


def test_many_clients_at_once_get_their_own_answers(server):
    jobs = [(f"Question {n}", {"a": (n % 5 - 2) / 2}) for n in range(12)]

    async def use(client):
        return await asyncio.gather(
            *(
                collected(
                    client,
                    model=f"a@{position['a']}",
                    messages=[{"role": "user", "content": prompt}],
                    stream=n % 2 == 0,
                    **GREEDY,
                )
                for n, (prompt, position) in enumerate(jobs)
            )
        )

    found = [text.strip() for text, *_ in server.ask(use)]
    server.engine.close()
    assert found == [server.expected(position, prompt=prompt) for prompt, position in jobs]


def test_choices_seeds_and_usage(server):
    async def use(client):
        request = dict(model="a", messages=HELLO, n=3, seed=5, max_tokens=9, temperature=1)
        whole = await client.chat.completions.create(**request)
        stream = await client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        return whole, [chunk async for chunk in stream]

    whole, chunks = server.ask(use)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage
    prompt = len(server.engine.lm.chat.prompt("Hello"))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, 27)
    assert whole.usage.total_tokens == prompt + 27


def test_completions_of_texts_and_of_tokens(server):
    tokenizer = server.engine.lm.tokenizer

    async def use(client):
        create = client.completions.create
        request = dict(model="a@-1", temperature=0, max_tokens=7)
        many = await create(prompt=["One", "Three"], n=2, logprobs=2, **request)
        ids = await create(prompt=tokenizer("Three")["input_ids"], **request)
        stream = await create(prompt="Three", stream=True, logprobs=2, **request)
        return many, ids, [chunk async for chunk in stream]

    many, ids, chunks = server.ask(use)
    texts = [choice.text for choice in many.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3] == ids.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[3]
    told = many.choices[3].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 7
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert sum((part.token_logprobs for part in streamed), []) == pytest.approx(
        told.token_logprobs, abs=1e-4
    )
    # Greedy: the token that was chosen is the likeliest.
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values())
    # 16 tokens where a request says nothing, as in OpenAI's API.
    usage = server.post(COMPLETIONS, model="base", prompt="x", temperature=0)[1]["usage"]
    assert usage["completion_tokens"] == 16


def test_chat_logprobs_and_stop(server):
    sampled = {"temperature": 1, "seed": 1, "max_tokens": 12}
    text = server.post(CHAT, model="a", messages=HELLO, **sampled)[1]["choices"][0]["message"][
        "content"
    ]
    # Something that the text does not begin with, though it may well repeat itself.
    stop = next(text[i] for i in range(2, len(text)) if text.index(text[i]) == i)
    _, reply = server.post(
        CHAT, model="a", messages=HELLO, stop=stop, logprobs=True, top_logprobs=2, **sampled
    )
    (choice,) = reply["choices"]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    told = choice["logprobs"]["content"]
    assert told and all(len(token["top_logprobs"]) == 2 for token in told)
    assert all(token["logprob"] <= 0 for token in told)


def test_models(server):
    async def use(client):
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("a@-0.5")
        with pytest.raises(openai.NotFoundError, match="no dial is called"):
            await client.models.retrieve("c")
        return listed, one

    listed, one = server.ask(use)
    assert listed == ["base", "default", "a", "b"] and one.id == "a@-0.5"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "gpt-4o"}, "model", "Dials here: a, b"),
        ({"model": "a@much"}, "model", "not a finite number"),
        ({"dial": {"c": 1}}, "dial", "no dial is called 'c'"),
        ({"dial": {"a": "NaN"}}, "dial", "not a finite number"),
        ({"dial": {"a": float("nan")}}, "dial", "not a finite number"),
        ({"dial": 1}, "dial", "object of names"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": "Hello"}, "messages", "messages"),
        ({"messages": [{"role": "cook", "content": ""}]}, "messages.0.role", "assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content", "list"),
        ({"stop": 1}, "stop", "list"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"stop": ["x", "y" * 257]}, "stop.1", "256"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"temperature": float("inf")}, "temperature", "temperature"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens", "context of 4096"),
        ({"n": 1000}, "n", "16"),
        ({"tools": [{"type": "function"}]}, "tools", "not offered"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not offered"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_told_in_openai_s_form(server, body, param, words, stream):
    status, reply = server.post(CHAT, **({"messages": HELLO, "stream": stream} | body))
    assert status == 400, reply
    error = reply["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


def test_a_template_refuses_in_its_own_words(server):
    tokenizer = server.engine.lm.tokenizer
    before = tokenizer.chat_template
    two = [*HELLO, *HELLO]

    async def use(client):
        with pytest.raises(openai.BadRequestError) as found:
            await client.chat.completions.create(model="a", messages=two, stream=True)
        return str(found.value)

    try:
        for template, words in (
            (
                "{% if messages | length > 1 %}{{ raise_exception('Roles must alternate!') }}"
                "{% endif %}",
                "Roles must alternate!",
            ),
            ("{{ messages[0].content + 1 }}", "str"),  # a template that is wrong itself
        ):
            tokenizer.chat_template = template
            assert words in server.ask(use)
    finally:
        tokenizer.chat_template = before
    assert server.post(CHAT, model="a", messages=two, **GREEDY)[0] == 200


def test_null_fields_system_messages_and_parts(server):
    empty = dict.fromkeys(("n", "stop", "seed", "top_p", "tools", "stream", "logprobs", "dial"))
    plain = [{"role": "system", "content": "Be brief."}, *HELLO]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("Hel", "lo")]},
    ]
    found = []
    for messages in (plain, parts, HELLO):
        status, reply = server.post(CHAT, model="base", messages=messages, **GREEDY, **empty)
        assert status == 200, reply
        found.append((reply["choices"][0]["message"]["content"], reply["usage"]))
    assert found[0] == found[1] != found[2]


def test_what_a_position_disturbs(server):
    answered = [*HELLO, {"role": "assistant", "content": "I am fine."}]
    status, told = server.post(DISTURBANCE, model="a@2", messages=answered, dial={"b": -1})
    assert status == 200 and told["model"] == "a@2+b@-1"
    expected = asyncio.run(
        server.engine.disturbance([Message("user", "Hello")], "I am fine.", {"a": 2.0, "b": -1.0})
    )
    assert told["tokens"] == [{"token": t.token, "kl": t.kl} for t in expected]
    assert "".join(t.token for t in expected) == "I am fine." and max(t.kl for t in expected) > 0
    for body, param in (
        ({"messages": HELLO}, "messages"),
        ({"messages": answered[1:]}, "messages"),
        ({"messages": answered, "model": "c"}, "model"),
    ):
        status, told = server.post(DISTURBANCE, **{"model": "a", **body})
        assert status == 400 and told["error"]["param"] == param


def test_an_engine_that_measures_nothing_says_so(server):
    class Other:
        models, close = server.engine.models, server.engine.close

    app = create_app(Other(), Positions({"a": None, "b": None}), "x")
    answered = [*HELLO, {"role": "assistant", "content": "I am fine."}]

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pasto") as http:
            reply = await http.post(DISTURBANCE, json={"model": "a", "messages": answered})
            return reply.status_code, (await http.get("/v1/dials")).json()

    status, told = asyncio.run(run())
    assert status == 501 and told["measures_disturbance"] is False


def test_bodies_that_are_no_requests(server):
    async def run():
        async with server.http() as http:
            for content in (b"", b"{", b"\xff", b"[1]", b"[" * 100_000, b'"x"'):
                reply = await http.post(CHAT, content=content)
                assert reply.status_code == 400 and reply.json()["error"]["message"], content
            large = await http.post(CHAT, content=b" " * (2**22 + 1))
            assert large.status_code == 413
            for method, path, status in (("GET", CHAT, 405), ("POST", "/v1/audio", 404)):
                reply = await http.request(method, path)
                assert (
                    reply.status_code == status and "/v1/models" in reply.json()["error"]["message"]
                )
            assert (await http.get("/health")).json() == {"status": "ok"}

    asyncio.run(run())


def test_an_engine_that_fails_is_a_500_with_a_log(server, monkeypatch, caplog):
    def prefill(prompts):
        raise MemoryError("on purpose")

    for stream in (False, True):
        monkeypatch.setattr(server.engine.scheduler.batch, "prefill", prefill)
        if stream:

            async def use(client):
                request = dict(model="a", messages=HELLO, stream=True)
                with pytest.raises(openai.APIError, match="on purpose"):
                    async for _ in await client.chat.completions.create(**request):
                        pass

            server.ask(use)
        else:
            status, reply = server.post(CHAT, model="a", messages=HELLO)
            assert status == 500 and reply["error"]["type"] == "server_error"
    assert len([r for r in caplog.records if r.exc_info]) == 2
    assert server.post(CHAT, model="a", messages=HELLO, **GREEDY)[0] == 200


def test_a_full_queue_says_when_to_come_back(serving):
    app = create_app(serving(waiting=0), Positions({"a": None, "b": None}), "random:llama")

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://pasto"
        ) as http:
            return await http.post(CHAT, json={"model": "a", "messages": HELLO})

    reply = asyncio.run(run())
    assert reply.status_code == 429 and reply.headers["retry-after"] == "2"
    assert reply.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(server, stream):
    """The ASGI way of it: a disconnect instead of the next message."""
    body = json.dumps(
        {"model": "a", "messages": HELLO, "max_tokens": 4000, "stream": stream, "n": 2}
    )
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [],
    }
    scheduler = server.engine.scheduler
    rows = []

    async def run():
        messages = [{"type": "http.request", "body": body.encode(), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while len(scheduler.rows) < 2:
                await asyncio.sleep(0.01)
            rows.extend(scheduler.rows)
            return {"type": "http.disconnect"}

        async def send(message):
            return None

        await asyncio.wait_for(server.app(scope, receive, send), 60)
        while scheduler.busy:
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(rows) == 2 and not any(row.ended for row in rows)
