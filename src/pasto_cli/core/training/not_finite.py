"""A loss that is not a number any more, as an error that names its batch and the next step."""

from collections.abc import Sequence

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.training.terms import LossReport


class NotFinite(PastoError):
    """The loss is not a number any more; the adapter holds the last weights that gave one."""

    def __init__(self, problem: str, remedy: str, batch: Sequence[TokenPair]) -> None:
        super().__init__(problem, remedy)
        self.batch = batch
        """The pairs that it was computed on."""


def not_finite(problem: str, found: LossReport, batch: Sequence[TokenPair]) -> NotFinite:
    """The error of a loss on a batch, with what it consists of."""
    return NotFinite(
        f"{problem}: {found.parts}", "Lower training.lr or raise training.constraint_ramp", batch
    )
