"""Where a server has the positions of a dial: pasto's own names, LoRAs by name, llama.cpp's list.

pasto serve      {"model": "honest@-0.5"}
vLLM, SGLang     {"model": "lora-minus0.50"}, a LoRA that is named as `pasto export` names it
llama-server     {"lora": [{"id": 0, "scale": 1.0}, ...]}, by the names of its files
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Refusal
from pasto_cli.core.serving.positions import BASE, DEFAULT
from pasto_cli.core.serving.upstream import Json, Upstream
from pasto_cli.core.steering.coefficients import from_words


class Target(NamedTuple):
    """One position at a server."""

    name: str
    coefficient: float
    """As users turn it; 0 is the base."""
    fields: Json
    """What a request for it says."""


def find_targets(
    upstream: Upstream, dial: str, coefficients: Sequence[float], named: Mapping[str, float]
) -> list[Target]:
    """The base and the positions of a dial at a server, the base first.

    Args:
        upstream: The server.
        dial: What a pasto server probably calls the dial.
        coefficients: Where it is asked to stand, on a server that takes any.
        named: Model name -> coefficient, where names do not say it.

    Raises:
        PastoError: If it cannot be reached, or names nothing that can be told to be a position.
    """
    models = _models(upstream)
    ids = [str(model["id"]) for model in models]
    base = next((str(m["id"]) for m in models if not m.get("parent")), ids[0] if ids else "")
    if named:
        own = BASE if any(m.get("owned_by") == "pasto" for m in models) else base
        found = [Target(name, c, {"model": name}) for name, c in named.items()]
        return [Target(own, 0.0, {"model": own}), *found]
    if models and all(model.get("owned_by") == "pasto" for model in models):
        return _of_pasto(upstream, [i for i in ids if i not in (BASE, DEFAULT)], dial, coefficients)
    found = _of_llama_cpp(upstream) or _by_name(base, ids)
    if len(found) < 2:
        raise PastoError(
            f"no name at {upstream.url} says a position: {', '.join(ids) or 'it has no models'}",
            "Say which coefficient is behind each: --model NAME=COEFFICIENT.",
        )
    return found


def _models(upstream: Upstream) -> list[Json]:
    found = upstream.get("/v1/models")
    models = found.get("data") if isinstance(found, dict) else None
    if not isinstance(models, list):
        raise PastoError(
            f"{upstream.url} lists no models as OpenAI's API does", "See that it is the right port."
        )
    return models


def _of_pasto(
    upstream: Upstream, dials: Sequence[str], dial: str, coefficients: Sequence[float]
) -> list[Target]:
    name = dials[0] if len(dials) == 1 else dial
    if name not in dials:
        raise PastoError(
            f"{upstream.url} has the dials {', '.join(dials) or 'none'}, none called {dial}",
            f"If it is one of these, say which: --model {(dials or ['NAME'])[0]}@1=1.",
        )
    each = [f"{name}@{c:g}" for c in coefficients]
    found = [Target(n, c, {"model": n}) for n, c in zip(each, coefficients, strict=True)]
    return [Target(BASE, 0.0, {"model": BASE}), *found]


def _of_llama_cpp(upstream: Upstream) -> list[Target]:
    """Positions by the names of a llama-server's files; none if it is another server."""
    try:
        adapters = upstream.get("/lora-adapters")
    except Refusal:
        return []
    if not isinstance(adapters, list):
        return []

    def only(number: int | None) -> Json:
        return {"lora": [{"id": a["id"], "scale": float(a["id"] == number)} for a in adapters]}

    found = [Target("base", 0.0, only(None))]
    for adapter in adapters:
        stem = PurePath(str(adapter.get("path", ""))).stem
        if (c := from_words(stem)) is not None:
            found.append(Target(stem, c, only(adapter["id"])))
    return found


def _by_name(base: str, ids: Sequence[str]) -> list[Target]:
    found = [Target(base, 0.0, {"model": base})]
    for name in ids:
        if name != base and (c := from_words(name)) is not None:
            found.append(Target(name, c, {"model": name}))
    return found
