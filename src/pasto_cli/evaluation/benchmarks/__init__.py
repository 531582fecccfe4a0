"""Benchmarks: questions with Yes and No as answers, labelled by the values behind each action.

`load_benchmark` takes a bundled name, `dailydilemmas`, or the path of a benchmark file (`schema.py`).
"""

import difflib
from pathlib import Path

from pasto_cli import bundled
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks.dailydilemmas import load_dailydilemmas
from pasto_cli.evaluation.benchmarks.item import Benchmark, Item, subset
from pasto_cli.evaluation.benchmarks.schema import parse_benchmark

__all__ = ["Benchmark", "Item", "benchmark_names", "load_benchmark", "subset"]


def benchmark_names() -> list[str]:
    """Names that `load_benchmark` knows."""
    return ["dailydilemmas", *(f.name.removesuffix(".yaml") for f in bundled.files("benchmarks", ".yaml"))]


def load_benchmark(name: str, data: str | None = None) -> Benchmark:
    """Load a benchmark.

    Args:
        name: Bundled name, `dailydilemmas`, or the path of a `.yaml` file.
        data: Local folder with the DailyDilemmas files; without it they come from the Hub at a pinned revision.

    Raises:
        PastoError: If it is unknown or cannot be read.
    """
    if data is not None and name != "dailydilemmas":
        raise PastoError(
            f"--data is for dailydilemmas; {name} needs none", "Add --benchmark dailydilemmas, or leave --data out."
        )
    if name == "dailydilemmas":
        return load_dailydilemmas(data)
    for file in bundled.files("benchmarks", ".yaml"):
        if file.name == f"{name}.yaml":
            return parse_benchmark(file.read_text(encoding="utf-8"), file.name)
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        try:
            return parse_benchmark(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise PastoError(f"{name}: cannot be read ({error})", "Give a UTF-8 YAML file.") from None
    names = benchmark_names()
    near = difflib.get_close_matches(name, names, 1)
    raise PastoError(
        f"unknown benchmark {name!r}", f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}, or a .yaml file."
    )
