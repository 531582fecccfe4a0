"""Coefficients: one for all rows of a batch, or one for each."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError

Coefficients = float | Sequence[float] | Tensor
"""One for all batch rows, or one for each."""


def per_row(coefficients: Coefficients) -> tuple[Tensor | None, list[float]]:
    """(index of each row's coefficient or None for one that serves all rows, distinct
    coefficients)."""
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist() if coefficients.dim() else float(coefficients)
    values = (
        [float(coefficients)]
        if isinstance(coefficients, int | float)
        else [float(a) for a in coefficients]
    )
    if not values or not all(math.isfinite(a) for a in values):
        raise PastoError(
            f"coefficients {values} are not finite numbers", "Use numbers such as -1, 0 or 0.5."
        )
    if isinstance(coefficients, int | float):
        return None, values
    unique = sorted(set(values))
    return torch.tensor([unique.index(a) for a in values]), unique


def change(coefficients: Coefficients, f: Callable[[float], float]) -> Coefficients:
    """Each coefficient put through a function."""
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist() if coefficients.dim() else float(coefficients)
    return (
        f(float(coefficients))
        if isinstance(coefficients, int | float)
        else [f(float(a)) for a in coefficients]
    )
