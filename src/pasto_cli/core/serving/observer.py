"""What is noted of every request: a line of the access log, and the server's figures.

An `Exchange` is made when a request comes; endpoints write into it what they learn, and it is read
when the reply has gone out, however that ends.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pasto_cli.core.serving.answers import Answers
from pasto_cli.core.serving.engine import Prompt
from pasto_cli.core.serving.metrics import Metrics

KEY = "pasto.exchange"
"""Where a request's scope has its exchange."""
GONE = 499
"""Status of what nobody waited for, as nginx calls it."""
LONGEST_PATH = 200
"""Characters of a path that are logged."""

Log = Callable[[Mapping[str, Any]], None]
"""Receives one entry for each request."""


@dataclass
class Exchange:
    """One request and its reply."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Sent to the client as X-Request-Id."""
    arrived: float = field(default_factory=time.perf_counter)
    status: int = 0
    error: str | None = None
    """Code or type of what went wrong, also after the status had been sent."""
    model: str | None = None
    """Name of the position that answers."""
    prompts: Sequence[Prompt] = ()
    """Kept only where they are logged."""
    prompt_tokens: int = 0
    answers: Answers | None = None

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers, as far as they came."""
        return sum(clock.tokens for clock in self.answers.clocks) if self.answers else 0


class Observer:
    """ASGI middleware, the outermost: nothing is answered without it.

    Args:
        app: Answers.
        routes: Those of the application; other paths are counted as one.
        metrics: Counts.
        log: Receives one entry for each request; None for no access log.
    """

    def __init__(
        self, app: ASGIApp, routes: Iterable[BaseRoute], metrics: Metrics, log: Log | None
    ) -> None:
        self.app, self.routes, self.metrics, self.log = app, list(routes), metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and note how."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.id
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:  # how some servers tell of it; `_note` sees it by itself
            raise
        except asyncio.CancelledError as error:
            # The server ends and has waited long enough; to hand it on gives it a traceback to log.
            exchange.error = exchange.error or type(error).__name__
        except BaseException as error:
            exchange.error = exchange.error or type(error).__name__
            raise
        finally:
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.arrived
        answers = exchange.answers
        if answers is not None and not answers.over and exchange.error is None:
            exchange.status = GONE
        status = exchange.status or 500
        self.metrics.requests.labels(self._route(scope), str(status)).inc()
        self.metrics.prompt_tokens.inc(exchange.prompt_tokens)
        self.metrics.completion_tokens.inc(exchange.completion_tokens)
        for clock in answers.clocks if answers else ():
            if clock.first is not None:
                self.metrics.first_token.observe(clock.first - exchange.arrived)
            if (pause := clock.pause) is not None:
                self.metrics.next_token.observe(pause)
        if self.log is None:
            return
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": exchange.id,
            "method": scope["method"],
            "path": scope["path"][:LONGEST_PATH],
            "status": status,
            "seconds": round(seconds, 4),
        }
        if exchange.model is not None:
            entry["model"] = exchange.model
            entry["prompt_tokens"] = exchange.prompt_tokens
            entry["completion_tokens"] = exchange.completion_tokens
        if exchange.error is not None:
            entry["error"] = exchange.error
        if exchange.prompts:
            entry["prompts"] = [_readable(prompt) for prompt in exchange.prompts]
        self.log(entry)

    def _route(self, scope: Scope) -> str:
        """The path as the application writes it, so that clients cannot invent labels."""
        for route in self.routes:
            if route.matches(scope)[0] is not Match.NONE:
                return getattr(route, "path", "other")
        return "other"


def _readable(prompt: Prompt) -> object:
    """A prompt as JSON has it."""
    if isinstance(prompt, str):
        return prompt
    return [part if isinstance(part, int) else part._asdict() for part in prompt]
