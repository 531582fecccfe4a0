"""The web page of a server, and the facts of its dials that it shows.

    GET  /            one static page: no build step, and nothing from another host
    GET  /v1/dials    what is known of each dial (`DialFacts`)

The page says nothing that a server keeps to itself, and asks the same endpoints as every client.
Its policy allows its own script and style by their hashes, and requests to its own server only:
what a model or a stranger's adapter says cannot become code.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pasto_cli.core.records.evaluation import without_nan
from pasto_cli.core.serving.dial_facts import DialFacts

_PAGE = resources.files("pasto_cli.core.serving") / "page.html"


def page_routes(base: str, dials: Sequence[DialFacts], measures: bool) -> list[Route]:
    """Routes of the page.

    Args:
        base: Where the base model comes from.
        dials: What is served.
        measures: Whether the engine tells what a position disturbs.
    """
    page = _PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    facts = {
        "object": "list",
        "base": base,
        "measures_disturbance": measures,
        "data": without_nan([dial.model_dump() for dial in dials]),
    }

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def describe(_: Request) -> Response:
        return JSONResponse(facts)

    return [Route("/", show), Route("/v1/dials", describe)]


def policy(page: str) -> str:
    """The content security policy of a page with inline scripts and styles."""
    rules = {
        "default-src": "'none'",
        "script-src": _hashes(page, "script"),
        "style-src": _hashes(page, "style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def _hashes(page: str, element: str) -> str:
    inside = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in inside)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
