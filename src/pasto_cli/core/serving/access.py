"""Who may ask: the key, the names that a server answers to, and pages of other origins.

A server on this machine is reached by every page that a browser on it has open. Two checks keep
them out without a key: such a page has another origin, and one that had its own name resolved to
127.0.0.1 (DNS rebinding) sends that name in the header Host.
"""

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Refusal
from pasto_cli.core.serving.openai_replies import error_body

OPEN = frozenset({"/", "/health"})
"""Paths that need no key: they tell nothing and cost nothing."""
EVERY_ORIGIN = "*"


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Raises:
        PastoError: If a key cannot stand in a header, or an origin is none.
    """

    key: str | None = field(default=None, repr=False)
    """What requests have to know; None asks for nothing."""
    origins: Sequence[str] = ()
    """Origins of pages that may ask besides the server's own; `*` for all."""
    loopback: bool = False
    """Answer only to the names of this machine."""

    def __post_init__(self) -> None:
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise PastoError(  # which must not be shown
                "the key is empty, or has characters that a header cannot have",
                "Take letters and digits; for instance PASTO_API_KEY=$(openssl rand -hex 24)",
            )
        for origin in self.origins:
            if origin != EVERY_ORIGIN and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise PastoError(
                    f"{origin!r} is not an origin",
                    "Write scheme and host, no path: --allow-origin https://example.org",
                )

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why a request is not answered; None if it is."""
        host = headers.get("host", "")
        if self.loopback and not is_loopback(_name(host)):
            return Refusal(
                f"this server is not called {host!r}",
                "Ask 127.0.0.1 or localhost; a proxy before it must send that as Host.",
                code="wrong_host",
                status=403,
            )
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, host):
            return Refusal(
                f"pages of {origin!r} may not ask here",
                f"Start the server with --allow-origin {origin}",
                code="wrong_origin",
                status=403,
            )
        if self.key is None or path in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Headers are Latin-1; in constant time, so that a key cannot be found letter by letter.
        same = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        if scheme.lower() == "bearer" and same:
            return None
        return Refusal(
            "the key is wrong" if given else "a key is needed",
            "Send the server's key: Authorization: Bearer KEY, or api_key=KEY of the client.",
            code="invalid_api_key",
            status=401,
        )

    def _allows(self, origin: str, host: str) -> bool:
        own = urlsplit(origin).netloc == host if "://" in origin else False
        return own or origin in self.origins or EVERY_ORIGIN in self.origins


class Guard:
    """ASGI middleware that lets through what may ask.

    Args:
        app: Answers.
        access: Who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse before anything of the body is read."""
        if scope["type"] == "http":
            refusal = self.access.refusal(scope["path"], Headers(scope=scope))
            if refusal is not None:
                status, body = error_body(refusal)
                more = {"WWW-Authenticate": "Bearer"} if status == 401 else None
                await JSONResponse(body, status, more)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """The name in a header Host: without port, without the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
