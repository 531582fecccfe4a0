"""DailyDilemmas (Chiu, Jiang and Choi, arXiv 2410.02683; CC BY 4.0): 1,360 dilemmas, two rows each.

Each of the rows `to_do` and `not_to_do` of a dilemma asks about its own action, so that a row's
label is the sign of its own side. The data is read from the Hub at a pinned revision or from a
local folder with the same files; it is never part of this package. Controls are ours. No torch.
"""

import ast
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.paths import expanded
from pasto_cli.core.evaluation.benchmarks.item import Benchmark, Item, own_labels, plain
from pasto_cli.core.evaluation.benchmarks.schema import DILEMMA_INSTRUCTION, PREFILL, fill

REPO = "kellycyy/daily_dilemmas"
CONFIG = "Dilemmas_with_values_aggregated"
REVISION = "372352c4143ec4923c50b4472bd3148a474f7ab8"
TITLE = "DailyDilemmas (arXiv 2410.02683)"
LICENCE = "CC BY 4.0"
SOURCE = f"https://huggingface.co/datasets/{REPO} at {REVISION}"
FILE = "dilemma_to_action_to_values_aggregated.csv"
VALUES_CONFIG = "Values"
VALUES_FILE = "values.csv"
FRAMEWORKS = ("WVS", "MFT", "Virtue", "Emotion", "Maslow")
"""World Values Survey, Moral Foundations, Aristotle's virtues, Plutchik's emotions, Maslow's
needs."""


def load_dailydilemmas(data: str | None, controls: Sequence[Item]) -> Benchmark:
    """All dilemmas as items, and controls.

    Args:
        data: Folder that holds the csv files, or None for the Hub.
        controls: Items that no value should move.

    Raises:
        PastoError: If the file or the Hub cannot be read, or a dilemma does not have its two rows.
    """
    if data is not None:
        folder = expanded(data)
        rows, classes = _local_rows(folder), _classes(_local_values(folder))
        origin = str(folder / FILE)
    else:
        rows, classes = _hub_rows(CONFIG), _classes(_hub_rows(VALUES_CONFIG))
        origin = "DailyDilemmas"
    by_dilemma: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_dilemma.setdefault(str(row["dilemma_idx"]), {})[str(row["action_type"])] = row
    items = [
        item
        for number, sides in by_dilemma.items()
        for item in _pair(number, sides, classes, origin)
    ]
    source = SOURCE if data is None else FILE
    return Benchmark("dailydilemmas", TITLE, LICENCE, source, PREFILL, [*items, *controls])


def _pair(
    number: str,
    sides: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, Sequence[str]],
    origin: str,
) -> list[Item]:
    """The two rows of a dilemma."""
    if set(sides) != {"to_do", "not_to_do"}:
        raise PastoError(
            f"{origin}: dilemma {number} has the rows {sorted(sides)}, not to_do and not_to_do",
            "Use the unchanged file.",
        )
    values = {
        side: _values(row["values_aggregated"], classes, origin) for side, row in sides.items()
    }
    items: list[Item] = []
    for side, other in (("to_do", "not_to_do"), ("not_to_do", "to_do")):
        situation, action = (
            str(sides[side][name]).strip() for name in ("dilemma_situation", "action")
        )
        items.append(
            Item(
                id=f"d{number}/{side}",
                group=f"d{number}",
                kind="target",
                prompt=fill(DILEMMA_INSTRUCTION, situation, action),
                labels=own_labels(values[side], values[other]),
            )
        )
    return items


def _values(cell: Any, classes: Mapping[str, Sequence[str]], origin: str) -> list[str]:
    """The values of an action, and the classes that the frameworks put them in."""
    try:
        values = [str(v) for v in (ast.literal_eval(cell) if isinstance(cell, str) else cell)]
        return values + [c for v in values for c in classes.get(plain(v), ())]
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ):  # brackets in brackets
        raise PastoError(
            f"{origin}: {cell!r} is not a list of values", "Use the unchanged file."
        ) from None


def _local_rows(folder: Path) -> Iterable[Mapping[str, Any]]:
    path = folder / FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise PastoError(
            f"{path}: cannot be read ({error})", f"--data takes the folder that holds {FILE}."
        ) from None
    wanted = {"dilemma_idx", "dilemma_situation", "action_type", "action", "values_aggregated"}
    if not rows or not wanted <= set(rows[0]):
        raise PastoError(
            f"{path}: not the DailyDilemmas file; its columns must hold "
            f"{', '.join(sorted(wanted))}",
            f"Get {FILE} from {REPO}.",
        )
    return rows


def _classes(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Value -> classes such as `mft: care`; case and spaces do not count."""
    return {
        plain(str(row["value"])): [
            f"{name}: {row[name]}" for name in FRAMEWORKS if str(row.get(name) or "").strip()
        ]
        for row in rows
        if row.get("value")
    }


def _local_values(folder: Path) -> Iterable[Mapping[str, Any]]:
    """The table of values; a folder without it has no frameworks."""
    try:
        with (folder / VALUES_FILE).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PastoError(
            f"{folder / VALUES_FILE}: cannot be read ({error})",
            f"Get it from {REPO}, or remove it.",
        ) from None


def _hub_rows(config: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    try:
        loaded: Any = datasets.load_dataset(REPO, config, revision=REVISION)
    # The library raises anything from OSError to its own types; all mean "not to be had".
    except Exception as error:
        raise PastoError(
            f"DailyDilemmas cannot be loaded from the Hub ({type(error).__name__})",
            f"Check the connection, or give --data DIR with {FILE}.",
        ) from None
    return [row for split in loaded.values() for row in split]
