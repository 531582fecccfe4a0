"""The HTTP interface: OpenAI's paths before an engine.

    GET  /v1/models  /v1/models/NAME       the dials by name, and the base
    POST /v1/chat/completions              a conversation, rendered by the model's own template
    POST /v1/completions                   a text as it stands
    POST /v1/disturbance                   a conversation that ends in an answer: KL to the base
    GET  /  /v1/dials                      the web page and what it shows of each dial (`page`)
    GET  /health                           whether it runs
    GET  /metrics                          figures for Prometheus

An engine or a dial is never chosen by a path on this machine: requests name positions.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pasto_cli.base.text import half_character_in
from pasto_cli.core.serving.access import Access, Guard
from pasto_cli.core.serving.answers import Answers, in_time
from pasto_cli.core.serving.dial_facts import DialFacts
from pasto_cli.core.serving.disturbance import Measures
from pasto_cli.core.serving.engine import Engine, Refusal
from pasto_cli.core.serving.metrics import Metrics
from pasto_cli.core.serving.observer import GONE, KEY, Exchange, Log, Observer
from pasto_cli.core.serving.openai_replies import (
    ChatForm,
    CompletionForm,
    Form,
    Reply,
    error_body,
)
from pasto_cli.core.serving.openai_requests import Body, ChatBody, CompletionBody, read_body
from pasto_cli.core.serving.page import page_routes
from pasto_cli.core.serving.positions import BASE, DEFAULT, Positions, name_of

LARGEST_BODY = 2**22
"""Bytes of a request."""
RETRY_AFTER = "2"
"""Seconds after which a client that was refused for load may ask again."""
log = logging.getLogger("pasto.serving")


class Rules(NamedTuple):
    """How a server answers, whatever is asked."""

    access: Access = Access()
    timeout: float | None = None
    """Seconds that a request may take, from its arrival to its last token."""
    log: Log | None = None
    """Receives one entry of the access log for each request."""
    log_prompts: bool = False
    """Whether the entries hold prompts."""


def create_app(
    engine: Engine,
    positions: Positions,
    base: str,
    rules: Rules | None = None,
    dials: Sequence[DialFacts] = (),
) -> Starlette:
    """The application, for uvicorn or any other ASGI server.

    Args:
        engine: Decodes.
        positions: Reads where requests want the dials.
        base: Where the base model comes from; shown to clients.
        rules: How it answers.
        dials: What is known of the dials; shown to clients.
    """
    rules = rules or Rules()
    metrics = Metrics(engine)
    api = _Api(engine, positions, base, rules, metrics)
    routes = [
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/disturbance", api.disturbance, methods=["POST"]),
        Route("/health", api.health),
        Route("/metrics", api.metrics_page),
        *page_routes(base, dials, isinstance(engine, Measures)),
    ]
    return Starlette(
        routes=routes,
        # The first is the outermost: what is refused is noted too, and a page that may ask is told
        # why it was refused.
        middleware=[
            Middleware(Observer, routes=routes, metrics=metrics, log=rules.log),
            *_cors(rules.access),
            Middleware(Guard, access=rules.access),
        ],
        exception_handlers={HTTPException: _no_such_path},
    )


def _cors(access: Access) -> list[Middleware]:
    """What lets pages of other origins read replies; nothing where none may."""
    if not access.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    ]


class _Api:
    """The endpoints."""

    def __init__(
        self, engine: Engine, positions: Positions, base: str, rules: Rules, metrics: Metrics
    ) -> None:
        self.engine, self.positions, self.base = engine, positions, base
        self.rules, self.metrics = rules, metrics
        self.started = int(time.time())

    async def models(self, _: Request) -> Response:
        """Names that a request's `model` may have; `NAME@COEFFICIENT` is one for every dial."""
        names = [BASE, DEFAULT, *self.engine.models()]
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in names]})

    async def model(self, request: Request) -> Response:
        """One of them, or any position."""
        name = request.path_params["name"]
        try:
            self.positions.read(name)
        except Refusal as error:
            return _error(Refusal(error.message, error.hint, code="model_not_found", status=404))
        return JSONResponse(self._entry(name))

    async def health(self, _: Request) -> Response:
        """Whether it runs."""
        return JSONResponse({"status": "ok"})

    async def metrics_page(self, _: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._complete(request, ChatBody, ChatForm())

    async def completions(self, request: Request) -> Response:
        """Go on with a text."""
        return await self._complete(request, CompletionBody, CompletionForm())

    async def disturbance(self, request: Request) -> Response:
        """KL(p_0 || p_c) at each token of the last message, an answer that is there already."""
        exchange: Exchange = request.scope[KEY]
        deadline = self._deadline()
        try:
            async with in_time(deadline, status=408):
                sent = await _json(request)
            body = read_body(ChatBody, sent)
            *before, answer = (message.plain() for message in body.messages)
            if not before or answer.role != "assistant":
                raise Refusal(
                    "the last message is not an answer",
                    "Send the conversation, and the answer as a message of the assistant.",
                    param="messages",
                )
            if not isinstance(self.engine, Measures):
                raise Refusal("this engine has no distributions", "Use another.", status=501)
            position = self.positions.read(body.model, body.dial)
            exchange.model = name_of(position)
            async with in_time(deadline, status=504):
                found = await self.engine.disturbance(before, answer.content, position)
            tokens = [told._asdict() for told in found]
            return JSONResponse(
                {"object": "disturbance", "model": exchange.model, "tokens": tokens}
            )
        except Exception as error:
            return _error(error, exchange)

    async def _complete(self, request: Request, kind: type[Body], form: Form) -> Response:
        exchange: Exchange = request.scope[KEY]
        deadline = self._deadline()
        try:
            async with in_time(deadline, status=408):
                sent = await _json(request)
            body = read_body(kind, sent)
            if self.rules.log_prompts:
                exchange.prompts = body.prompts()
            asked = self.positions.read(body.model, body.dial)
            position = self.engine.served(asked)
            exchange.model = name_of(position)
            nearest_to = name_of(asked) if position != asked else None
            reply = Reply(form, exchange.model, body.alternatives() is not None, nearest_to)
            answers = await Answers.begin(self.engine, body.requests(), position, deadline)
            exchange.answers = answers
            exchange.prompt_tokens = prompt_tokens = answers.prompt_tokens(body.n)
            self.metrics.turned(position)
            if body.stream:
                told = body.stream_options.include_usage
                events = _events(answers, reply, prompt_tokens, told, exchange)
                return _EventStream(answers, events, reply.headers)
            choices = await _unless_gone(request, answers)
            if choices is None:
                return Response(status_code=GONE)  # nobody reads it
            return JSONResponse(reply.whole(choices, prompt_tokens), headers=reply.headers)
        except Exception as error:
            return _error(error, exchange)

    def _deadline(self) -> float | None:
        """The event loop's time at which a request that arrives now has taken too long."""
        seconds = self.rules.timeout
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "pasto",
            "root": self.base,
        }


class _EventStream(StreamingResponse):
    """Server-sent events; however it ends, also before its first event, the answers are closed."""

    def __init__(
        self, answers: Answers, events: AsyncIterator[str], headers: Mapping[str, str]
    ) -> None:
        more = {"Cache-Control": "no-cache", **headers}
        super().__init__(events, media_type="text/event-stream", headers=more)
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answers.aclose()


async def _events(
    answers: Answers, reply: Reply, prompt_tokens: int, include_usage: bool, exchange: Exchange
) -> AsyncIterator[str]:
    """The events of a stream, the last of them `[DONE]`."""
    offsets, made = [0] * len(answers.streams), 0
    try:
        for index in range(len(offsets)):
            if (opening := reply.opening(index)) is not None:
                yield _event(opening)
        async for index, piece in answers:
            yield _event(reply.chunk(index, piece, offsets[index]))
            offsets[index] += len(piece.text)
            made += piece.completion_tokens
        if include_usage:
            yield _event(reply.last(prompt_tokens, made))
    except Exception as error:  # the status has been sent: the error is an event of its own
        yield _event(_logged(error, exchange)[1])
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _unless_gone(request: Request, answers: Answers) -> list[Any] | None:
    """All pieces of all answers; None if the client goes away first, and then they are closed."""
    work = asyncio.create_task(answers.collect())
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        work.cancel()
        gone.cancel()
        await answers.aclose()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json(request: Request) -> object:
    """The body of a request.

    Raises:
        Refusal: If it is too large or not JSON.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refusal(f"the body has more than {LARGEST_BODY} bytes", "Send less.", status=413)
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}", "Send a JSON object.") from None
    if half := half_character_in(sent):
        raise Refusal(f"the body holds {half}, half a character", "Send whole characters.")
    return sent


def _logged(error: Exception, exchange: Exchange | None) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; what is our own fault is logged with its traceback."""
    status, body = error_body(error)
    if exchange is not None:
        exchange.error = body["error"]["code"] or body["error"]["type"]
    if status == 500:
        log.error("a request failed", exc_info=error)
    return status, body


def _error(error: Exception, exchange: Exchange | None = None) -> Response:
    status, body = _logged(error, exchange)
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


def _no_such_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    problem = f"{request.method} {request.url.path}: no such path"
    return _error(Refusal(problem, "Paths: /v1/chat/completions, /v1/models.", status=status))
