"""What every section of a recipe is: frozen, strict, with numbers that have ranges. No torch."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST = 1_000_000_000
"""Largest count and largest factor: beyond it nothing that a recipe says makes sense."""
LARGEST_SEED = 2**63 - 1
"""Every generator takes seeds from 0 up to this one."""
LARGEST_COEFFICIENT = 1000.0
"""Largest coefficient of a dial: text is noise there, but numbers do not overflow."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
"""Range of temperatures above 0, which is greedy: below it sampling is greedy but for rounding."""


def _number(value: Any) -> Any:
    # A bare `yes` of YAML would count as 1.
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "Input should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
Positive = Annotated[Real, Field(ge=1e-12, le=MOST)]
NonNegative = Annotated[Real, Field(ge=0.0, le=MOST)]
Signed = Annotated[Real, Field(ge=-MOST, le=MOST)]
Count = Annotated[Integer, Field(ge=1, le=MOST)]
Seed = Annotated[Integer, Field(ge=0, le=LARGEST_SEED)]
Coefficient = Annotated[Real, Field(ge=-LARGEST_COEFFICIENT, le=LARGEST_COEFFICIENT)]


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
