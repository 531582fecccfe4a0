"""Steered so far that the numbers end: states that overflow give logits of NaN, or all the same.

A norm after an infinite state makes zeros of it, so that logits of 0 everywhere are no logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pasto_cli.base.errors import PastoError


def are_true(logits: Tensor) -> Tensor:
    """Whether logits (..., v) say something: (...,) bool."""
    largest, smallest = logits.amax(-1), logits.amin(-1)  # NaN goes through both
    return torch.isfinite(largest) & (largest > smallest)


def require_true_logits(logits: Tensor, coefficients: Sequence[float]) -> None:
    """See that logits say something.

    Args:
        logits: (b, v), before anything is made of them.
        coefficients: Of each row, for the message.

    Raises:
        PastoError: With the first coefficient at which they do not.
    """
    good = are_true(logits)  # (b,)
    if bool(good.all()):
        return
    worst = coefficients[int(good.int().argmin())]
    raise PastoError(
        f"at coefficient {worst:g} the states of the model overflow: its logits are not finite, or "
        f"all the same",
        "Lower the coefficient: -1 and +1 are the ends of a dial. In half precision, also try "
        "model.dtype: float32.",
    )


class TrueLogits(LogitsProcessor):
    """Refuses such logits while a text is generated, and changes nothing.

    Args:
        coefficients: Of each row.
    """

    def __init__(self, coefficients: Sequence[float]) -> None:
        self.coefficients = coefficients

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """The scores as they are."""
        require_true_logits(scores, self.coefficients)
        return scores
