"""`pasto serve`: dials behind an OpenAI-compatible interface."""

import contextlib
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.dial_facts import DialFacts, facts_of
from pasto_cli.core.serving.engine import Engine
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.positions import Positions
from pasto_cli.core.serving.transformers_engine import TransformersEngine
from pasto_cli.core.steering.mixing_cache import MixingCache
from pasto_cli.core.steering.steerer import AdapterSteerer, Scaled, Steerer
from pasto_cli.workflows.dials import Dial, LoadOptions, open_dial, open_set, split_coefficient
from pasto_cli.workflows.kept_results import kept_results
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.upstreams import UpstreamOptions, open_engine, upstream_options

if TYPE_CHECKING:  # it needs the packages that `require_server` looks for
    from pasto_cli.core.serving.app import Rules

__all__ = ["open_service", "require_server", "serve", "upstream_options"]
GRACE = 5
"""Seconds that answers have to end after Ctrl-C or SIGTERM."""


class Named(NamedTuple):
    """An adapter as the command line names it: NAME=RUN:COEFFICIENT, only RUN of it needed."""

    name: str | None
    source: str
    own: float | None
    """Where it stands for requests that say nothing."""


@dataclass(frozen=True)
class Service:
    """What is served."""

    engine: Engine
    positions: Positions
    base: str
    """Where the base model comes from."""
    dials: Sequence[DialFacts] = ()
    """What is known of the dials."""


def require_server() -> None:
    """Refuse where the packages of the HTTP interface are missing, before a model is loaded.

    Raises:
        PastoError: With the command that installs them.
    """
    try:
        import httpx2  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise PastoError(
            f"pasto serve needs the package {error.name}",
            'Install it: pip install "pasto-cli[serve]"',
        ) from None


def open_service(
    adapters: Sequence[str],
    watch: Watcher,
    options: LoadOptions,
    limits: Limits,
    upstream: UpstreamOptions | None = None,
) -> Service:
    """Load adapters and their base, and start an engine on them.

    Args:
        adapters: See `Named`; none for the latest run.
        watch: Told what is loaded.
        options: How the base is loaded and the adapters checked.
        limits: How much the engine takes on.
        upstream: The engine, where it is not in this process.

    Raises:
        PastoError: If two dials have one name, cannot stand on one base, or an engine does not
            start.
    """
    options = options._replace(weights=upstream is None)
    named = [_named(text) for text in adapters]
    if named:
        sources = [each.source for each in named]
        dials = list(open_set(sources, watch, options, packing=False).dials)
    else:
        dials = [open_dial(None, watch, options, packing=False)]
        named = [Named(None, "", None)]
    names = [
        each.name or plain_name(dial.recipe.name) for each, dial in zip(named, dials, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise PastoError(
                f"two dials are called {name}", "Name them apart: pasto serve one=RUN other=RUN"
            )
    positions = Positions({name: each.own for name, each in zip(names, named, strict=True)})
    engine = _started(dict(zip(names, dials, strict=True)), limits, upstream, watch)
    facts = [_facts(*each) for each in zip(names, named, dials, strict=True)]
    return Service(engine, positions, dials[0].lm.spec.source, facts)


def _facts(name: str, named: Named, dial: Dial) -> DialFacts:
    run = runs.run_of(dial.folder)
    found = kept_results(run, dial.ends) if run else None
    return facts_of(
        name,
        named.own,
        dial.meta,
        raw=dial.ends != dial.meta.ends,
        evaluations=found.evaluations if found else (),
        sentiment=found.sentiment if found else None,
    )


def _started(
    dials: Mapping[str, Dial], limits: Limits, upstream: UpstreamOptions | None, watch: Watcher
) -> Engine:
    if upstream is not None:
        return open_engine(dials, upstream, limits, watch)
    lm = next(iter(dials.values())).lm
    return TransformersEngine(lm, {name: _steerer(dial) for name, dial in dials.items()}, limits)


def _steerer(dial: Dial) -> Steerer:
    """The dial at the coefficients that a user turns, with M(a) kept."""
    kept = MixingCache(dial.adapter)
    return Scaled(AdapterSteerer(dial.adapter, dial.lm, kept), *dial.ends)


def _named(text: str) -> Named:
    name, equals, source = text.partition("=")
    # A path may hold an equals sign of its own.
    if not equals or "/" in name:
        name, source = "", text
    path, own = split_coefficient(source)
    return Named(name or None, path, own)


def plain_name(name: str) -> str:
    """A recipe's name as a dial's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "dial"


def serve(
    service: Service,
    host: str,
    port: int,
    ready: Callable[[str], None],
    rules: "Rules | None" = None,
    grace: int = GRACE,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, and then those that came before it.

    Args:
        service: What is served; it is closed in the end.
        host: Address to listen on.
        port: 0 takes one that is free.
        ready: Told the server's address as soon as requests are answered.
        rules: How it answers; anybody's questions by default.
        grace: Seconds that answers have to end after that; then they are broken off.

    Raises:
        PastoError: If the address cannot be had.
    """
    import uvicorn

    from pasto_cli.core.serving.app import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            for name in service.engine.models():  # the first requests find their position ready
                await service.engine.load(service.positions.read(name))
            await super().startup(sockets)
            if self.started:
                ready(address)

    try:
        listening = _listen(host, port)
        address = _address(host, listening.getsockname()[1])
        config = uvicorn.Config(
            create_app(service.engine, service.positions, service.base, rules, service.dials),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=grace,
        )
        # uvicorn raises the signal once more when it has ended.
        with contextlib.closing(listening), _ended_by_signals():
            Server(config).run(sockets=[listening])
    finally:
        service.engine.close()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends this block as Ctrl-C does, instead of the process before it has tidied up."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if here else None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, but does not listen yet."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        return listening
    except OSError as error:
        raise PastoError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "Choose another --port (0 takes one that is free) or --host.",
        ) from None


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
