"""Benchmarks: questions labelled by the values behind each answer. No torch.

    item.py           one question, a whole benchmark, a part of one
    schema.py         what stands in a file
    reading.py        the file formats, YAML and JSONL
    dailydilemmas.py  DailyDilemmas, read from the Hub or from a local folder

`load_benchmark` takes a bundled name, `dailydilemmas`, or the path of a benchmark file.
"""

import difflib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited
from pasto_cli.base.paths import expanded
from pasto_cli.core.evaluation.benchmarks import dailydilemmas
from pasto_cli.core.evaluation.benchmarks.item import Benchmark, Item, subset
from pasto_cli.core.evaluation.benchmarks.reading import (
    parse_benchmark,
    parse_bundled,
    parse_jsonl,
)

__all__ = [
    "Benchmark",
    "Entry",
    "Item",
    "benchmark_names",
    "check_benchmark",
    "listing",
    "load_benchmark",
    "subset",
]

BUNDLED_CONTROLS = "mini-dilemmas"
"""The benchmark whose controls stand in for those of a file that has none."""
LARGEST = 2**28
"""Bytes of a benchmark file."""
SUFFIXES = (".yaml", ".yml", ".jsonl")


def bundled_benchmarks() -> list[Benchmark]:
    """Those that are part of the package."""
    return [
        parse_bundled(f.read_text(encoding="utf-8"), _controls)
        for f in bundled.files("benchmarks", ".yaml")
    ]


class Entry(NamedTuple):
    """One line of the list of benchmarks."""

    name: str
    title: str
    n: str
    """Dilemmas, rows and controls, in words."""
    licence: str
    source: str


def listing(data: str | None = None) -> list[Entry]:
    """Every benchmark that there is.

    Args:
        data: Local folder with the DailyDilemmas files, to count them; without it their published
            number stands.
    """
    daily = load_benchmark("dailydilemmas", data) if data is not None else None
    count = _count(daily) if daily else "1,360 dilemmas, 2,720 rows; the controls of mini-dilemmas"
    prompts = len(bundled.lines("sentiment_prompts.txt"))
    return [
        Entry(
            "dailydilemmas",
            dailydilemmas.TITLE,
            count,
            dailydilemmas.LICENCE,
            dailydilemmas.SOURCE,
        ),
        *(Entry(b.name, b.title, _count(b), b.licence, b.source) for b in bundled_benchmarks()),
        Entry(
            "sentiment",
            "Sentiment of greedy answers to neutral open prompts (VADER)",
            f"{prompts} prompts",
            "MIT",
            "written for pasto",
        ),
    ]


def _count(benchmark: Benchmark) -> str:
    targets = [i for i in benchmark.items if i.kind == "target"]
    values = Counter(v for i in targets for v in i.labels if ": " not in v)
    common = ", ".join(f"{v} {n}" for v, n in values.most_common(3))
    more = ", ..." if len(values) > 3 else ""
    what = "dilemmas" if len(values) > 1 else "questions"
    groups, controls = len({i.group for i in targets}), len(benchmark.items) - len(targets)
    return (
        f"{groups:,} {what}, {len(targets):,} rows, {controls} control rows; "
        f"rows by value: {common}{more}"
    )


def benchmark_names() -> list[str]:
    """Names that `load_benchmark` knows."""
    return [
        "dailydilemmas",
        *(f.name.removesuffix(".yaml") for f in bundled.files("benchmarks", ".yaml")),
    ]


def load_benchmark(name: str, data: str | None = None) -> Benchmark:
    """Load a benchmark.

    Args:
        name: Bundled name, `dailydilemmas`, or the path of a `.yaml` or `.jsonl` file.
        data: Local folder with the DailyDilemmas files; without it they come from the Hub at a
            pinned revision.

    Raises:
        PastoError: If it is unknown or cannot be read.
    """
    if data is not None and name != "dailydilemmas":
        raise PastoError(
            f"--data is for dailydilemmas; {name} needs none",
            "Add --benchmark dailydilemmas, or leave --data out.",
        )
    if name == "dailydilemmas":
        return dailydilemmas.load_dailydilemmas(data, _controls())
    for file in bundled.files("benchmarks", ".yaml"):
        if file.name == f"{name}.yaml":
            return parse_bundled(file.read_text(encoding="utf-8"), _controls)
    path = expanded(name)
    if path.suffix in SUFFIXES and path.is_file():
        return _read_file(path, name)
    names = [*benchmark_names(), "sentiment"]  # which has no items, and a scorer of its own
    near = difflib.get_close_matches(name, names, 1)
    there = f"There are {', '.join(names)}, or a {', '.join(SUFFIXES)} file."
    raise PastoError(f"unknown benchmark {name!r}", f"Did you mean {near[0]}?" if near else there)


def _read_file(path: Path, name: str) -> Benchmark:
    """A benchmark file of the user's; one without controls takes the bundled ones."""
    try:
        text = read_limited(path, LARGEST)
    except OSError as error:
        raise PastoError(
            f"{name}: cannot be read ({error.strerror or error})", "Give a UTF-8 file."
        ) from None
    parse = parse_jsonl if path.suffix == ".jsonl" else parse_benchmark
    return parse(text, name, _controls)


def _controls() -> list[Item]:
    return [item for item in load_benchmark(BUNDLED_CONTROLS).items if item.kind != "target"]


def check_benchmark(name: str | None, data: str | None = None) -> None:
    """Refuse an unknown benchmark before a model is loaded; the Hub is not asked."""
    if name not in (None, "sentiment") and (name != "dailydilemmas" or data is not None):
        load_benchmark(name, data)
