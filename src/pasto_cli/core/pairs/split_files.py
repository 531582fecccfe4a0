"""JSON lines of a run that say of each record whether it is trained on or held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import read_text
from pasto_cli.base.strict_json import parse_json_object

T = TypeVar("T")


def read_split(path: Path, parse: Callable[[dict[str, Any]], T]) -> tuple[list[T], list[T]]:
    """Records that are trained on, and those that are held out.

    Args:
        path: JSON lines with a `part` each, `train` or `held_out`.
        parse: Makes a record of the rest; may raise ValueError, KeyError or TypeError.

    Raises:
        PastoError: If the file is missing, or with the number of the first bad line.
    """
    parts: dict[str, list[T]] = {"train": [], "held_out": []}
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read ({error.strerror or error})", "Train again."
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json_object(line)
            part = record.pop("part")
            if part not in ("train", "held_out"):
                raise ValueError(f"{part!r} is no part: train or held_out")
            parts[part].append(parse(record))
        except ValidationError as error:
            raise PastoError(f"{path}:{number}: {first_problem(error)}", "Train again.") from None
        except KeyError as error:
            raise PastoError(f"{path}:{number}: {error} is missing", "Train again.") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise PastoError(f"{path}:{number}: {error}", "Train again.") from None
    return parts["train"], parts["held_out"]
