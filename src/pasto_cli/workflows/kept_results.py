"""What was measured with a run's adapter, as far as it is about the dial as it stands.

A result speaks of +1 and -1. Where `pasto calibrate` has moved the ends since, or where it was
measured under --raw, its +1 is another coefficient of training: it stays on disk, and is left out.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base.shell import pasto
from pasto_cli.core.evaluation.benchmarks import benchmark_names
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun, parse
from pasto_cli.workflows.progress import Watcher

SENTIMENT = "sentiment"
"""The benchmark that scores text; its result has a form of its own."""


class Results(NamedTuple):
    """What a run's folder holds of its dial."""

    evaluations: list[EvalRun]
    """Comparisons included; of a part and the whole of one benchmark, the whole."""
    sentiment: SentimentRun | None
    outdated: dict[str, str]
    """Files that were measured between other ends, and the benchmark of each."""
    run: Path


def kept_results(run: Path, ends: Sequence[float]) -> Results:
    """Results of a run, of a dial between these ends; files that cannot be read are skipped.

    Args:
        run: Folder of the run.
        ends: Coefficients of training that +1 and -1 stand for.
    """
    evaluations: dict[tuple[str | bool | None, ...], EvalRun] = {}
    sentiment, outdated = None, dict[str, str]()
    for path in sorted((run / "eval").glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            text = path.read_text(encoding="utf-8")
            is_text = path.name in (f"{SENTIMENT}.json", f"{SENTIMENT}-raw.json")
            found = SentimentRun.model_validate_json(text) if is_text else parse(text)
            if not between(found.provenance, ends):
                if not path.stem.endswith("-raw"):  # measured so on purpose
                    outdated[path.name] = found.benchmark
            elif isinstance(found, SentimentRun):
                sentiment = found
            else:
                key = (found.benchmark, found.value, found.label_sign, found.method, found.equal_kl)
                if key not in evaluations or fuller(found, evaluations[key]):
                    evaluations[key] = found
    return Results(list(evaluations.values()), sentiment, outdated, run)


def read_evaluation(path: Path) -> EvalRun | None:
    """One result; None where there is none that can be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def between(provenance: dict[str, Any], ends: Sequence[float]) -> bool:
    """Whether something was measured between these ends; older files do not say between which."""
    stated = provenance.get("ends")
    return stated is None or list(stated) == list(ends)


def fuller(one: EvalRun, other: EvalRun) -> bool:
    """Whether the first result is of more rows than the second, of the same value."""
    return one.value == other.value and one.scores.n_target > other.scores.n_target


def say_outdated(results: Results, watch: Watcher) -> None:
    """Name what is left out, and how to have it again."""
    if results.outdated:
        known = (*benchmark_names(), SENTIMENT)
        again = dict.fromkeys(b if b in known else "FILE" for b in results.outdated.values())
        commands = [pasto("eval", results.run, "-b", benchmark) for benchmark in again]
        watch.warn(
            f"measured between other ends than the dial's now, and left out: "
            f"{', '.join(results.outdated)}. Measure again: {'; '.join(commands)}"
        )
