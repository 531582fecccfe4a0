"""Numbers as text."""

from collections.abc import Mapping
from typing import Any


def format_estimate(e: Mapping[str, Any], digits: int = 2, signed: bool = True) -> str:
    """`+0.31 [+0.12, +0.50]`, or `undefined` where there is no number."""
    if e["value"] != e["value"] or e["value"] is None:
        return "undefined"
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    text = form.format(e["value"])
    if e["low"] == e["low"]:
        text += f" [{form.format(e['low'])}, {form.format(e['high'])}]"
    return text
