"""Numbers as text."""

import math
import re
from collections.abc import Mapping

from pasto_cli.base.statistics import Estimate


def format_estimate(estimate: Estimate, *, digits: int = 2, signed: bool = True) -> str:
    """`+0.31 [+0.12, +0.50]`, or `undefined` where there is no number."""
    if math.isnan(estimate.value):
        return "undefined"
    form = f"{'+' if signed else ''}.{digits}f"
    text = f"{estimate.value:{form}}"
    if not math.isnan(estimate.low):
        text += f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return text


def format_optional(estimate: Estimate | None, *, digits: int = 2, signed: bool = True) -> str:
    """As `format_estimate`; nothing where it was not measured."""
    return "" if estimate is None else format_estimate(estimate, digits=digits, signed=signed)


def format_share(share: float, *, digits: int = 1) -> str:
    """`46.9%`, or `undefined`."""
    return "undefined" if math.isnan(share) else f"{share:.{digits}%}"


def format_coefficient(coefficient: float) -> str:
    """`-0.5`, `0`, `+1`: the sign of a coefficient is half of what it says."""
    return f"{coefficient:+g}" if coefficient else "0"


def substitute(template: str, **values: str) -> str:
    """A template with `{name}` of each value in its place, all at once.

    What a value holds stays as it stands, be it braces or the name of another place.
    """
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def format_bytes(count: int | None) -> str:
    """`812 MiB`, `2.17 GiB`, or `not known`."""
    if count is None:
        return "not known"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def format_seconds(seconds: float) -> str:
    """`2.3 s`, `14 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def format_settings(settings: Mapping[str, object]) -> str:
    """`training.lr=0.00312 adapter.rank=16`: keys of a recipe in one line, as --set takes them."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings.items()
    )
