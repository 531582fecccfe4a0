"""Running out of memory: how it shows, and what a user is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pasto_cli.errors import PastoError

SMALLEST_BUDGET = 64
"""Nodes of a token tree below which a smaller one would not help."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn running out of memory inside this context into a clear error.

    Args:
        remedy: What to write to need less.

    Raises:
        PastoError: Instead of torch's errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise PastoError(f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}", remedy) from None
