"""What every section of a recipe is: frozen, strict, with numbers that have ranges. No torch."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pasto_cli.base.limits import LARGEST_COEFFICIENT, LARGEST_SEED, MOST


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
