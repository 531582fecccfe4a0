"""The one exception that a user is meant to see.

`PastoError` says what is wrong and what to do next. `cli.app.main` prints it without a traceback
and ends with exit code 1. Every other exception keeps its traceback: it is a bug of pasto.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `pasto --help` imports this module and has no need of pydantic
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class PastoError(Exception):
    """A mistake or a state of the machine that the user can mend.

    Args:
        message: What is wrong, with the offending value in it.
        hint: The next step, with the user's own paths and names filled in; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def first_problem(error: "ValidationError") -> str:
    """The first complaint of pydantic as one line: `training.epochs: Input should be ...`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = message_of(first)
    # A validator of a whole record complains about no key in particular.
    return f"{where}: {message}" if where else message


def message_of(mistake: "ErrorDetails") -> str:
    """What pydantic says of one mistake."""
    # It puts "Value error" before what a validator of ours says, which stands on its own.
    return mistake["msg"].removeprefix("Value error, ")
