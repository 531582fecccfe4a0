"""Standard input, output and error, whatever the shell made of them.

    closed           nothing is shown; the descriptor is taken, so that no file of ours gets its
                     number and what a library prints does not end up in it
    reader is gone   (`pasto ... | head`) what follows is shown to nobody; the work is finished, and
                     the exit code is the usual one
    full             the same, and in the end one line and exit code 1
    cp1252, ASCII    what the console has no character for is shown as `?`

A run of hours must not be lost because its output cannot be shown.
"""

import errno
import io
import os
import sys
from typing import Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.text import decode_text, half_character


class Output(io.TextIOWrapper):
    """A stream that goes on into nothing where it cannot be written.

    Args:
        stream: The one that Python opened.
    """

    failure: OSError | None = None

    def __init__(self, stream: io.TextIOWrapper) -> None:
        # Python keeps that one, as sys.__stdout__, and does not write to it any more.
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            # stderr has `backslashreplace` already, which loses nothing.
            errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
            line_buffering=stream.line_buffering,
        )

    def write(self, text: str, /) -> int:
        """Write; see the module."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush; see the module."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # with what is in the buffers
        os.close(nowhere)


def guard() -> None:
    """Put streams that cannot fail in the place of the process's own."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            if not _is_open(number):
                _occupy(number)
            if number:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        # Another program that runs the command, such as a test, may have put its own there.
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, Output(stream))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _occupy(number: int) -> None:
    """Open the null device under the number of a closed descriptor."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def output_gone() -> bool:
    """Whether nobody sees what is written to standard output any more."""
    return isinstance(sys.stdout, Output) and sys.stdout.failure is not None


def require_written() -> None:
    """See that all of standard output was taken.

    Raises:
        PastoError: If it was not, and not because its reader had seen enough.
    """
    if lost := _lost():
        raise PastoError(
            lost, "Free some disk, or send it elsewhere; files of a run are written all the same."
        )


def with_lost_output(error: PastoError) -> PastoError:
    """An error that a command ends with; it also says so if what it had to show was lost."""
    lost = _lost()
    return PastoError(f"{error.message}; and {lost}", error.hint) if lost else error


def _lost() -> str:
    """Why standard output was not taken; empty where it was, or its reader had seen enough."""
    sys.stdout.flush()
    failure = sys.stdout.failure if isinstance(sys.stdout, Output) else None
    if failure is None or failure.errno == errno.EPIPE:
        return ""
    return f"standard output cannot be written: {failure.strerror or failure}"


def fits_output(text: str) -> bool:
    """Whether the console has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def read_input() -> str:
    """All of standard input as text, whatever the locale says: UTF-8, see `decode_text`.

    Raises:
        PastoError: If there is none, or it is no text.
    """
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise PastoError("there is no standard input (it is closed)", "Send it a file or a pipe.")
    try:
        raw = sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise PastoError(
            f"standard input cannot be read: {getattr(error, 'strerror', None) or error}",
            "Send it a file or a pipe.",
        ) from None
    return decode_text(raw, "standard input")


def require_text(arguments: list[str]) -> None:
    """See that what stands on the command line is text.

    Raises:
        PastoError: With the first argument that is not.
    """
    for number, argument in enumerate(arguments, 1):
        if half_character(argument):
            raise PastoError(
                f"argument {number} is not UTF-8: {ascii(argument)}",
                "Write it in UTF-8; a file whose name is not UTF-8 needs another name.",
            )
