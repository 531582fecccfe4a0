"""What pydantic complains about, on one line."""

import pytest
from pydantic import BaseModel, ValidationError, field_validator, model_validator

from pasto_cli.base.errors import first_problem


class Person(BaseModel):
    name: str
    ages: list[int] = []

    @field_validator("name")
    @classmethod
    def _short(cls, name):
        if len(name) > 3:
            raise ValueError("too long")
        return name

    @model_validator(mode="after")
    def _known(self):
        if self.name == "x":
            raise ValueError("nobody is called x")
        return self


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"name": "long"}, "name: too long"),
        ({}, "name: Field required"),
        ({"name": "x"}, "nobody is called x"),
        ({"name": "a", "ages": [1, "b"]}, "ages.1: Input should be a valid integer"),
    ],
)
def test_the_first_problem_of_a_record_is_one_line(given, problem):
    with pytest.raises(ValidationError) as caught:
        Person.model_validate(given)
    assert first_problem(caught.value).startswith(problem)
