"""Memory: how much was held, how running out of it shows, and what is done about it.

Work that comes in groups of rows goes on in halves (`Pieces`); what cannot be cut ends in an error
that says what to write (`enough_memory`).
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch

from pasto_cli.base.errors import PastoError

T = TypeVar("T")

SMALLEST_BUDGET = 64
"""Nodes of a token tree below which a smaller one would not help."""


def peak_memory(device: torch.device) -> int:
    """Bytes that were held at most so far: of a GPU by torch, elsewhere by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    # ru_maxrss would start at what the parent held when it forked this process.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def is_shortage(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out.

    CPU allocators and some CUDA libraries raise a plain RuntimeError, known by its text only.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


class ShortageWarning(UserWarning):
    """Memory ran out, and the work goes on in smaller pieces."""


class Pieces(Generic[T]):
    """Runs groups of rows; where memory runs out, a group is cut in two.

    Later groups start from the smaller size: what has failed once would only fail again.

    Args:
        run: Does one group; may be called again with parts of a group that failed.
    """

    def __init__(self, run: Callable[[list[T]], None]) -> None:
        self.run = run
        self.largest: int | None = None

    def __call__(self, group: list[T]) -> None:
        """Run a group.

        Raises:
            RuntimeError, MemoryError: If even a single row does not fit.
        """
        if self.largest is not None and len(group) > self.largest:
            return self._halves(group)
        try:
            return self.run(group)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error) or len(group) == 1:
                raise
        # Outside the except block: in it the traceback would keep the failed pass's tensors alive.
        self.largest = len(group) // 2
        warnings.warn(
            f"out of memory with {len(group)} rows at once: going on with {self.largest} (a "
            f"smaller node_budget avoids this)",
            ShortageWarning,
            stacklevel=2,
        )
        return self._halves(group)

    def _halves(self, group: list[T]) -> None:
        middle = len(group) // 2
        self(group[:middle])
        self(group[middle:])


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
        raise PastoError(
            f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}", remedy
        ) from None
