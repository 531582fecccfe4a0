"""Loss reports of several batches as one: that of an optimiser step, or of a validation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.core.training.terms import LossReport


class WeightedReport(NamedTuple):
    """Loss of one batch among those of an optimiser step or of a validation."""

    share: float
    """The batch's share of all their pairs."""
    report: LossReport


class Summary(NamedTuple):
    """What a step or a validation says of itself."""

    loss: float
    parts: dict[str, float]
    diagnostics: dict[str, float]


def summarise(reports: Sequence[WeightedReport], held_out: LossReport | None = None) -> Summary:
    """Means over all pairs, plus the loss of held-out answers where there are any."""
    loss = sum(share * report.total.item() for share, report in reports)
    parts = _weighted_mean([(share, report.parts) for share, report in reports])
    diagnostics = _weighted_mean([(share, report.diagnostics) for share, report in reports])
    if held_out is not None:
        loss += held_out.total.item()
        parts |= held_out.parts
        diagnostics |= held_out.diagnostics
    return Summary(loss, parts, diagnostics)


def _weighted_mean(each: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Mean of dictionaries with shares, for the keys of the first."""
    keys = each[0][1]
    return {key: sum(share * values.get(key, math.nan) for share, values in each) for key in keys}
