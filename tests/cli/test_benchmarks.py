"""`pasto benchmarks`."""

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.benchmarks import benchmark_names, check_benchmark, load_benchmark
from tests.support.terminal import strict


def test_benchmarks_lists_each_with_n_licence_and_source(pasto):
    entries = strict(pasto("benchmarks", "--json").out)
    assert [entry["name"] for entry in entries] == [*benchmark_names(), "sentiment"]
    for entry in entries:
        assert set(entry) == {"name", "title", "n", "licence", "source"} and all(entry.values())
        check_benchmark(entry["name"])  # what is listed can be run
    counts = {entry["name"]: entry["n"] for entry in entries}
    targets = [item for item in load_benchmark("mini-dilemmas").items if item.kind == "target"]
    assert (
        f"{len(targets)} rows" in counts["mini-dilemmas"]
        and "1,360 dilemmas" in counts["dailydilemmas"]
    )
    assert counts["sentiment"] == f"{len(bundled.lines('sentiment_prompts.txt'))} prompts"


def test_benchmarks_prints_what_its_json_holds(pasto):
    lines = pasto("benchmarks").out.splitlines()
    for entry in strict(pasto("benchmarks", "--json").out):
        start = lines.index(entry["name"])
        shown = [f"  {name}: {entry[name]}" for name in ("title", "n", "licence", "source")]
        assert lines[start + 1 : start + 5] == shown
    assert "docs/benchmarks.md" in lines[-1]


def test_benchmarks_counts_dailydilemmas_where_it_lies(pasto, dailydilemmas):
    entries = strict(pasto("benchmarks", "--data", dailydilemmas, "--json").out)
    assert entries[0]["n"].startswith("1,360 dilemmas, 2,720 rows, 80 control rows")
