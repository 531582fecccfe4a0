"""Benchmarks: questions labelled by the values behind each answer.

`load_benchmark` takes a bundled name, `dailydilemmas`, or the path of a benchmark file (`schema.py`).
"""

import difflib
from pathlib import Path

from pasto_cli import bundled
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks.dailydilemmas import load_dailydilemmas
from pasto_cli.evaluation.benchmarks.item import Benchmark, Item, subset
from pasto_cli.evaluation.benchmarks.schema import parse_benchmark, parse_jsonl

__all__ = ["BUNDLED_CONTROLS", "Benchmark", "Item", "benchmark_names", "bundled_benchmarks", "load_benchmark", "subset"]

BUNDLED_CONTROLS = "mini-dilemmas"
"""The benchmark whose controls stand in for those of a file that has none."""
SUFFIXES = (".yaml", ".yml", ".jsonl")


def bundled_benchmarks() -> list[Benchmark]:
    """Those that are part of the package."""
    return [parse_benchmark(f.read_text(encoding="utf-8"), f.name) for f in bundled.files("benchmarks", ".yaml")]


def benchmark_names() -> list[str]:
    """Names that `load_benchmark` knows."""
    return ["dailydilemmas", *(f.name.removesuffix(".yaml") for f in bundled.files("benchmarks", ".yaml"))]


def load_benchmark(name: str, data: str | None = None) -> Benchmark:
    """Load a benchmark.

    Args:
        name: Bundled name, `dailydilemmas`, or the path of a `.yaml` or `.jsonl` file.
        data: Local folder with the DailyDilemmas files; without it they come from the Hub at a pinned revision.

    Raises:
        PastoError: If it is unknown or cannot be read.
    """
    if data is not None and name != "dailydilemmas":
        raise PastoError(
            f"--data is for dailydilemmas; {name} needs none", "Add --benchmark dailydilemmas, or leave --data out."
        )
    if name == "dailydilemmas":
        return load_dailydilemmas(data, _controls())
    for file in bundled.files("benchmarks", ".yaml"):
        if file.name == f"{name}.yaml":
            return parse_benchmark(file.read_text(encoding="utf-8"), file.name)
    path = Path(name)
    if path.suffix in SUFFIXES and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PastoError(f"{name}: cannot be read ({error})", "Give a UTF-8 file.") from None
        return parse_jsonl(text, name, _controls) if path.suffix == ".jsonl" else parse_benchmark(text, name, _controls)
    names = benchmark_names()
    near = difflib.get_close_matches(name, names, 1)
    there = f"There are {', '.join(names)}, or a {', '.join(SUFFIXES)} file."
    raise PastoError(f"unknown benchmark {name!r}", f"Did you mean {near[0]}?" if near else there)


def _controls() -> list[Item]:
    return [item for item in load_benchmark(BUNDLED_CONTROLS).items if item.kind != "target"]
