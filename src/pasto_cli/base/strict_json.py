"""JSON that means one thing: no key twice, no NaN, no halves of characters."""

import json
from typing import Any, NoReturn, cast

from pasto_cli.base.text import half_character_in


def parse_json(text: str) -> Any:
    """A JSON text as data.

    Raises:
        ValueError: With what is wrong, on one line.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise ValueError(f"not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if half := half_character_in(data):
        raise ValueError(f"holds {half}, half a character; write both halves, or the character")
    return data


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object as a dictionary.

    Raises:
        ValueError: With what is wrong, on one line.
    """
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"a JSON object is needed, such as {{...}}, not {text.strip()[:40]}")
    return cast("dict[str, Any]", data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice; keep one")
        found[key] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
