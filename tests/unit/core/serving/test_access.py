"""Who may ask a server: keys, names, origins."""

import asyncio

import httpx2 as httpx
import openai
import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.access import Access
from pasto_cli.core.serving.app import Rules, create_app
from pasto_cli.core.serving.positions import Positions

HOME = "http://127.0.0.1:8000"
PAGE = "https://example.org"


@pytest.fixture()
def ask(serving):
    """`ask(access, path, **headers)`: the reply of a server with such an access."""
    engine = serving()

    def send(access, path="/v1/models", method="GET", base=HOME, **headers):
        app = create_app(engine, Positions({"a": None, "b": None}), "random:llama", Rules(access))

        async def run():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=base) as http:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await http.request(method, path, headers=named)

        return asyncio.run(run())

    send.engine = engine
    return send


def test_a_key(ask):
    access = Access("s3cret")
    app = create_app(ask.engine, Positions({"a": None, "b": None}), "random:llama", Rules(access))

    async def listed(key):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOME) as http:
            client = openai.AsyncOpenAI(base_url=HOME + "/v1", api_key=key, http_client=http)
            return [model.id async for model in client.models.list()]

    assert asyncio.run(listed("s3cret")) == ["base", "default", "a", "b"]
    for wrong in ("s3cre", "s3crets", "S3CRET", "é"):
        if wrong.isascii():
            with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
                asyncio.run(listed(wrong))
        assert ask(access, Authorization=f"Bearer {wrong}".encode()).status_code == 401
    for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/v1/nothing", "/health/x"):
        for headers in ({}, {"Authorization": "Basic s3cret"}, {"Authorization": "s3cret"}):
            reply = ask(access, path, **headers)
            error = reply.json()["error"]
            assert reply.status_code == 401 and error["code"] == "invalid_api_key"
            assert "s3cret" not in reply.text and reply.headers["WWW-Authenticate"] == "Bearer"
    assert ask(access, "/health").status_code == 200
    assert ask(access, "/").status_code != 401  # a page may be loaded without
    assert ask(Access(), "/metrics").status_code == 200
    assert "s3cret" not in repr(access) + repr(Rules(access))


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
def test_keys_that_no_header_can_have_are_not_repeated(key):
    with pytest.raises(PastoError) as error:
        Access(key)
    assert "the key is empty, or has characters" in str(error.value)
    assert not key or key not in str(error.value)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://", ""])
def test_what_is_no_origin(origin):
    with pytest.raises(PastoError, match="is not an origin"):
        Access(origins=[origin])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("127.1.2.3", 200),
        ("[::1]:8000", 200),
        ("rebound.example.org:8000", 403),
        ("127.0.0.1.example.org", 403),
        ("192.168.0.1:8000", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_server_on_this_machine_knows_its_names(ask, host, status):
    reply = ask(Access(loopback=True), Host=host)
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["error"]["code"] == "wrong_host"
        assert ask(Access(), Host=host).status_code == 200


def test_pages_of_other_origins(ask):
    """A browser sends some requests without asking first; they must not be answered either."""
    for access in (Access(), Access(origins=["https://other.org"])):
        for origin in (PAGE, "null", "http://127.0.0.1:9", HOME + ".example.org"):
            reply = ask(access, Origin=origin)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "wrong_origin")
            assert "access-control-allow-origin" not in reply.headers
    assert ask(Access(), Origin=HOME).status_code == 200  # its own page
    for origins in ([PAGE], ["*"]):
        reply = ask(Access(origins=origins), Origin=PAGE)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == origins[0]


def test_a_page_that_may_ask_is_told_of_a_wrong_key(ask):
    access = Access("s3cret", origins=[PAGE])
    asking = {"Origin": PAGE, "Access_Control_Request_Method": "POST"}
    asking |= {"Access_Control_Request_Headers": "authorization,content-type"}
    before = ask(access, "/v1/chat/completions", "OPTIONS", **asking)
    assert before.status_code == 200 and "authorization" in before.text + str(before.headers)
    reply = ask(access, Origin=PAGE)
    assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == PAGE
    other = ask(access, "/v1/chat/completions", "OPTIONS", **(asking | {"Origin": HOME + "1"}))
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    assert ask(Access("s3cret"), "/v1/models", "OPTIONS", **asking).status_code == 403
