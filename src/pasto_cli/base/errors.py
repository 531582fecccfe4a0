"""The one exception that a user is meant to see.

`PastoError` says what is wrong and what to do next. `cli.app.main` prints it without a traceback
and ends with exit code 1. Every other exception keeps its traceback: it is our bug."""


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
