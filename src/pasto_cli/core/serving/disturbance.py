"""What a position disturbs: KL(p_0 || p_c) at every token of an answer, nats.

p_0 is the base's distribution of that token and p_c that of the base with its dials at c, both
after the same words: the conversation and the answer so far. It is worked out from a finished text
in two forward passes, so that no answer decodes slower for it.

Legend: n tokens of the answer, d d_model, v vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pasto_cli.core.models.forward import run_packed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.tokentree import Packed
from pasto_cli.core.serving.engine import Message, Position, Refusal
from pasto_cli.core.serving.text import TextWriter

POSITIONS_AT_ONCE = 64
"""Tokens whose distributions over the vocabulary are in memory together."""


class TokenKL(NamedTuple):
    """A token of an answer and what stands between the two models there."""

    token: str
    """Its text; empty where a character is complete with a later token only. Texts of all tokens
    put together are the answer."""
    kl: float
    """KL(p_0 || p_c), nats."""


@runtime_checkable
class Measures(Protocol):
    """An engine that can also tell what a position disturbs."""

    async def disturbance(
        self, messages: Sequence[Message], answer: str, position: Position
    ) -> list[TokenKL]:
        """Tokens of an answer to a conversation, as the model's tokenizer reads it.

        Raises:
            Refusal: For an answer without tokens, or one that does not fit into the context.
        """
        ...


@torch.no_grad()
def kl_per_token(
    lm: LoadedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    steered: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """KL(p_0 || p_c) at each token of an answer, nats.

    Args:
        lm: The base model, as it is: nothing steers it.
        prompt: Token ids before the answer.
        answer: Its token ids.
        steered: A context in which the dials stand at c.

    Raises:
        Refusal: If the steered model has no finite logits.
    """
    ids = torch.tensor([[*prompt, *answer]])
    length = ids.shape[1]
    # One row: its mask is the model's own, and one written out would have the square of its length.
    packed = Packed(ids, torch.arange(length)[None], torch.empty(0), [length], [])
    # A token is predicted one position before it stands.
    predicting = slice(-(len(answer) + 1), -1)
    base = run_packed(lm, packed).last[0, predicting]  # (n, d)
    with steered():
        turned = run_packed(lm, packed).last[0, predicting]  # (n, d)
    parts = zip(base.split(POSITIONS_AT_ONCE), turned.split(POSITIONS_AT_ONCE), strict=True)
    kl = torch.cat([_kl(lm.head(one), lm.head(other)) for one, other in parts])  # (n,)
    if not kl.isfinite().all():
        raise Refusal(
            "the model has no finite logits with its dials there",
            "Turn them less: -1 and 1 are the ends.",
            param="dial",
            code="not_finite",
        )
    return kl.clamp(min=0.0).tolist()  # rounding may leave it just below 0


def _kl(base: Tensor, turned: Tensor) -> Tensor:
    """KL (n,) of logits (n, v) to others."""
    log_p0, log_pc = base.log_softmax(-1), turned.log_softmax(-1)
    return (log_p0.exp() * (log_p0 - log_pc)).sum(-1)


def with_texts(tokenizer: Any, ids: Sequence[int], kl: Sequence[float]) -> list[TokenKL]:
    """Tokens by their texts."""
    writer = TextWriter(tokenizer)
    texts = [writer.push(token).text for token in ids]
    texts[-1] += writer.finish().text
    return [TokenKL(text, value) for text, value in zip(texts, kl, strict=True)]
