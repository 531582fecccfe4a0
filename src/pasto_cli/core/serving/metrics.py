"""Figures of a server for Prometheus, at `/metrics`.

Labels have few values: paths are those of the routes, and a dial is counted by its name and the
side that it is turned to, never by its coefficient.
"""

from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pasto_cli.core.serving.engine import Occupancy, Position
from pasto_cli.core.serving.positions import BASE

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the histogram of first tokens."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bounds of the histogram of the tokens after the first."""


@runtime_checkable
class Counted(Protocol):
    """An engine that knows its own rows; one behind a server of its own does not."""

    def occupancy(self) -> Occupancy:
        """How much it has to do now."""
        ...


class Metrics:
    """Counts of one server; several in one process do not meet.

    Args:
        engine: Asked for its rows, if it knows them.
    """

    def __init__(self, engine: object) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pasto_requests", "Requests that ended", ["path", "status"], registry=registry
        )
        self.dials = Counter(
            "pasto_dial_requests",
            "Completions by dial and the side it was turned to",
            ["dial", "side"],
            registry=registry,
        )
        self.prompt_tokens = Counter("pasto_prompt_tokens", "Tokens of prompts", registry=registry)
        self.completion_tokens = Counter(
            "pasto_completion_tokens", "Tokens of answers", registry=registry
        )
        self.first_token = Histogram(
            "pasto_time_to_first_token_seconds",
            "From the arrival of a request to the first text of an answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.next_token = Histogram(
            "pasto_time_per_output_token_seconds",
            "Mean over the tokens of an answer after its first",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        if isinstance(engine, Counted):
            rows = Gauge("pasto_rows", "Answers that decode", registry=registry)
            rows.set_function(lambda: engine.occupancy().rows)
            waiting = Gauge("pasto_queue_length", "Answers that wait", registry=registry)
            waiting.set_function(lambda: engine.occupancy().waiting)

    def turned(self, position: Position) -> None:
        """Count where a completion has its dials."""
        for name, coefficient in position.items():
            self.dials.labels(name, "positive" if coefficient > 0 else "negative").inc()
        if not position:
            self.dials.labels(BASE, "none").inc()

    def page(self) -> bytes:
        """All figures in Prometheus's text form."""
        return generate_latest(self.registry)
