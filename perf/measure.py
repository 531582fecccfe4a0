"""Seconds and MiB: ways run in turn, peaks of processes, and the table that they make."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pasto_cli.core.models.memory import peak_memory


class Times(NamedTuple):
    """Seconds of one way, sorted."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def in_turn(
    ways: dict[str, Callable[[], None]], repeats: int, warm_up: bool = True
) -> dict[str, Times]:
    """Run each way once unmeasured, then all of them in turn, forwards and backwards."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values() if warm_up else ():
        run()
    for repeat in range(repeats):
        names = list(ways) if repeat % 2 == 0 else list(ways)[::-1]
        for name in names:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - started)
    return {name: Times(sorted(seconds)) for name, seconds in found.items()}


def own_peak() -> float:
    """MiB that this process held at most."""
    return peak_memory(torch.device("cpu")) / 2**20


class Report:
    """Prints rows and keeps them for bench.json."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def times(
        self,
        name: str,
        ways: dict[str, Callable[[], None]],
        ratios: Sequence[tuple[str, str, str]],
        repeats: int,
        warm_up: bool = True,
    ) -> None:
        """Measure ways in turn; print each and the ratios (way, other way, target) of medians."""
        found = in_turn(ways, repeats, warm_up)
        for way, t in found.items():
            print(
                f"{name:12} {way:12} median {t.median:8.3f} s   [{t.seconds[0]:.3f}, "
                f"{t.seconds[-1]:.3f}]   n = {repeats}"
            )
        compared = []
        for one, other, target in ratios:
            value = found[one].median / found[other].median
            print(f"{name:12} {one} / {other} = {value:.2f}   (target: {target})", flush=True)
            compared.append({"ratio": f"{one} / {other}", "value": value, "target": target})
        self.rows.append(
            {
                "name": name,
                "seconds": {way: t.seconds for way, t in found.items()},
                "ratios": compared,
            }
        )

    def memory(self, name: str, mib: dict[str, float], target: str) -> None:
        """Print and keep two sizes in MiB."""
        (one, a), (other, b) = mib.items()
        print(
            f"{name:25} {one} {a:.1f} MiB, {other} {b:.1f} MiB: {one} / {other} = {a / b:.3f}   "
            f"(target: {target})",
            flush=True,
        )
        self.rows.append({"name": name, "mib": mib, "ratio": a / b, "target": target})
