"""HTTP to a stock server that decodes: OpenAI's /v1/completions, streamed, errors passed on.

Whoever wants an answer gets the upstream's own status and words; what cannot be reached is a 502.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx

from pasto_cli.core.serving.engine import Refusal

Json = dict[str, Any]
SILENCE = 600.0
"""Seconds without a byte after which an upstream counts as gone; a long queue is silent too."""
PATIENCE = 10.0
"""Seconds in which a connection must be made."""


class Upstream:
    """A server at an address.

    Args:
        url: `http://HOST:PORT`, with or without `/v1`.
        key: Sent as a bearer token, where the server wants one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.arguments: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(SILENCE, connect=PATIENCE),
            # Requests are as many as the interface before us lets in; none may wait for a socket.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32),
            "trust_env": False,  # a proxy for the internet has no place before an engine
        }
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _asynchronous(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot be shared between loops."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = httpx.AsyncClient(**self.arguments), loop
        return self._client

    def get(self, path: str) -> Any:
        """What a path says, for whoever has no event loop.

        Raises:
            Refusal: If it cannot be had.
        """
        return self._blocking(lambda client: client.get(path))

    def post(self, path: str, body: Json) -> Any:
        """What a path answers, for whoever has no event loop; its text if that is no JSON.

        Raises:
            Refusal: If it cannot be had.
        """
        return self._blocking(lambda client: client.post(path, json=body))

    def _blocking(self, send: Callable[[httpx.Client], httpx.Response]) -> Any:
        try:
            with httpx.Client(**self.arguments) as client:
                reply = send(client)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        return _content(reply)

    async def apost(self, path: str, body: Json) -> Any:
        """`post` inside an event loop."""
        try:
            reply = await self._asynchronous().post(path, json=body)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        return _content(reply)

    async def completion(self, body: Json) -> "Events":
        """Begin a streamed completion; the upstream has accepted it when this returns.

        Raises:
            Refusal: If it has not.
        """
        client = self._asynchronous()
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            request = client.build_request("POST", "/v1/completions", json=body)
            reply = await client.send(request, stream=True)
            if reply.status_code >= 400:
                await reply.aread()
                await reply.aclose()
                raise _refused(reply)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        return Events(reply, self)

    def _silent(self, error: Exception) -> Refusal:
        return Refusal(
            f"the engine at {self.url} does not answer ({str(error) or type(error).__name__})",
            "See that it runs and that the address is right.",
            code="upstream_unreachable",
            status=502,
        )

    def broken(self, error: Exception | None = None) -> Refusal:
        """What is raised where an answer ends before its end."""
        why = f" ({str(error) or type(error).__name__})" if error is not None else ""
        return Refusal(
            f"the engine at {self.url} broke an answer off{why}",
            "Ask again; its own log says more.",
            code="upstream_broke_off",
            status=502,
        )


class Events:
    """The chunks of a streamed completion; closing it early tells the upstream to stop."""

    def __init__(self, reply: httpx.Response, upstream: Upstream) -> None:
        self.reply, self.upstream = reply, upstream

    async def __aiter__(self) -> AsyncIterator[Json]:
        """Each chunk, up to `[DONE]`.

        Raises:
            Refusal: For an error that comes inside the stream, or a connection that breaks.
        """
        try:
            async for line in self.reply.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _told(chunk, 502)
                yield chunk
        except (httpx.HTTPError, ValueError) as error:
            raise self.upstream.broken(error) from None

    async def aclose(self) -> None:
        """Want no more."""
        await self.reply.aclose()


def _content(reply: httpx.Response) -> Any:
    if reply.status_code >= 400:
        raise _refused(reply)
    try:
        return reply.json()
    except ValueError:
        return reply.text


def _refused(reply: httpx.Response) -> Refusal:
    """An upstream's error, as it was meant for the client."""
    # What breaks inside the upstream is, seen from here, a bad gateway.
    status = 502 if reply.status_code == 500 else reply.status_code
    try:
        found = reply.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        words = reply.text.strip()[:300] or reply.reason_phrase
        return Refusal(f"the engine says: {words}", "", status=status)
    return _told(found, status)


def _told(found: Json, status: int) -> Refusal:
    """The error inside a reply: OpenAI's form, or the bare one of FastAPI and older servers."""
    error = found.get("error", found)
    if not isinstance(error, dict):
        return Refusal(str(error), "", status=status)
    message = error.get("message") or error.get("detail") or json.dumps(error)
    param, code = error.get("param"), error.get("code")
    return Refusal(
        str(message).rstrip("."),
        "",
        param=param if isinstance(param, str) else None,
        # Some servers repeat the status here.
        code=code if isinstance(code, str) else None,
        status=status,
    )
