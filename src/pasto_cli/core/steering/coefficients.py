"""Coefficients: one for all rows of a batch, or one per row."""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError

Coefficients = float | Sequence[float] | Tensor
"""One for all batch rows, or one per row."""


def per_row(coefficients: Coefficients) -> tuple[Tensor | None, list[float]]:
    """Split coefficients into the distinct ones and which of them each row has.

    M(a) costs a solve, so that it is computed for distinct coefficients and then spread over rows.

    Returns:
        The index of each row's coefficient (rows,), or None for one that serves all rows; and the
        distinct coefficients, sorted.

    Raises:
        PastoError: If there is none, or one is not finite.
    """
    shared, values = _numbers(coefficients)
    if not values or not all(math.isfinite(a) for a in values):
        raise PastoError(
            f"coefficients {values} are not finite numbers", "Use numbers such as -1, 0 or 0.5."
        )
    if shared:
        return None, values
    distinct = sorted(set(values))
    return torch.tensor([distinct.index(a) for a in values]), distinct


def change(coefficients: Coefficients, f: Callable[[float], float]) -> Coefficients:
    """Each coefficient put through a function."""
    shared, values = _numbers(coefficients)
    return f(values[0]) if shared else [f(a) for a in values]


def in_words(coefficient: float) -> str:
    """A coefficient as a part of file names and model names: `plus1.00`, `minus0.50`.

    Engines take these for the name of a model: no character that URLs or their options read
    otherwise.
    """
    # Two decimals, and more only where they tell two positions apart.
    exact = round(coefficient, 2) == coefficient
    size = f"{abs(coefficient):.2f}" if exact else f"{abs(coefficient)!r}"
    return ("plus" if coefficient > 0 else "minus") + size


def from_words(name: str) -> float | None:
    """The one coefficient in a name that `in_words` is part of; None without, or with several."""
    found = re.findall(r"(?:^|[^A-Za-z])(plus|minus)(\d+\.\d+(?:e-?\d+)?)", name)
    if len(found) != 1:
        return None
    sign, size = found[0]
    return float(size) if sign == "plus" else -float(size)


def _numbers(coefficients: Coefficients) -> tuple[bool, list[float]]:
    """(whether one serves all rows, the coefficients)."""
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist()  # a tensor without dimensions gives a number
    if isinstance(coefficients, int | float):
        return True, [float(coefficients)]
    return False, [float(a) for a in coefficients]
