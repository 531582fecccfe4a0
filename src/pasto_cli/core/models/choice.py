"""The two answers between which a model decides, such as Yes and No, without naming them."""

from torch import Tensor


def choice_tokens(log_p: Tensor) -> tuple[int, int]:
    """The two likeliest tokens of the mean of some next-token distributions.

    Args:
        log_p: Log-probabilities (n, v), such as those of a question and of its opposite.

    Returns:
        Token ids, the likelier one first.
    """
    first, second = log_p.logsumexp(0).topk(2).indices.tolist()
    return first, second
