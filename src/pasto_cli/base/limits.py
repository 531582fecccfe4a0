"""The range of every kind of number that a user gives, in options, recipes and requests.

Nothing here needs pydantic: options are checked before anything is loaded.
"""

from collections.abc import Sequence

from pasto_cli.base.errors import PastoError

MOST = 1_000_000_000
"""Largest count and largest factor: beyond it nothing that a recipe says makes sense."""
LARGEST_SEED = 2**63 - 1
"""Every generator takes seeds from 0 up to this one."""
LARGEST_COEFFICIENT = 1000.0
"""Largest coefficient of a dial: text is noise there, but numbers do not overflow."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
"""Range of temperatures above 0, which is greedy: below it sampling is greedy but for rounding."""


def require_coefficients(values: Sequence[float], place: str) -> None:
    """See that coefficients are numbers at which a model can be steered at all.

    Raises:
        PastoError: With the first that is not, and the range.
    """
    for value in values:
        if not abs(value) <= LARGEST_COEFFICIENT:  # not, since it may be NaN
            raise PastoError(
                f"{place}: {value:g} is not a coefficient: their range is "
                f"-{LARGEST_COEFFICIENT:g} to {LARGEST_COEFFICIENT:g}",
                "-1 and +1 are the ends of a dial; write a number such as -0.5.",
            )


def require_temperature(value: float) -> None:
    """See that a temperature is 0, which is greedy, or one to sample at.

    Raises:
        PastoError: With the range.
    """
    if value != 0.0 and not LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE:
        raise PastoError(
            f"a temperature of {value:g} cannot be sampled at: it is 0 (greedy), or from "
            f"{LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}",
            "0.7 to 1 is usual.",
        )


def require_seed(value: int) -> None:
    """See that a seed is one that every generator takes.

    Raises:
        PastoError: With the range.
    """
    if not 0 <= value <= LARGEST_SEED:
        raise PastoError(f"{value} is no seed: they go from 0 to {LARGEST_SEED}", "0 will do.")
