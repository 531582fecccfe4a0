"""What an engine is, and what goes in and comes out.

A position is a coefficient for each dial, c as users turn it; dials that are not named stand at 0.
An engine renders messages itself, since only it knows its model's chat template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self

from pasto_cli.base.errors import PastoError

Position = Mapping[str, float]
"""Dial -> coefficient."""


class Refusal(PastoError):
    """A request that an engine or the interface does not take.

    Args:
        message: What is wrong.
        hint: The next step.
        param: The field of the request.
        code: A word that programs can read.
        status: HTTP status.
    """

    def __init__(
        self,
        message: str,
        hint: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(message, hint)
        self.param, self.code, self.status = param, code, status


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = Sequence[Message] | str | Sequence[int]
"""A conversation, a text as it stands, or token ids."""


class Sampling(NamedTuple):
    """How tokens are chosen, and when a text ends."""

    max_tokens: int | None = None
    """None for the engine's own limit."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Mass of the likeliest tokens that are sampled from."""
    seed: int | None = None
    """None draws one."""
    stop: Sequence[str] = ()
    """Texts before which an answer ends."""
    logprobs: int | None = None
    """Number of alternatives whose log-probability is told with each token's; None tells none."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken; logits over less than this would overflow."""
        return self.temperature < 1e-5


class Request(NamedTuple):
    """One answer that is wanted."""

    prompt: Prompt
    sampling: Sampling


class Occupancy(NamedTuple):
    """How much an engine has to do."""

    rows: int
    """Answers that decode."""
    waiting: int
    """Answers that wait."""


class TokenLogprob(NamedTuple):
    """A token and its log-probability under the steered model, before temperature, in nats."""

    token: str
    logprob: float
    top: Sequence[tuple[str, float]] = ()
    """(token, log-probability) of the likeliest ones."""


@dataclass
class Piece:
    """Some text of an answer, as soon as it is sure."""

    text: str
    tokens: list[TokenLogprob] = field(default_factory=list)
    """Those whose text this is, where log-probabilities were asked for."""
    finish: str | None = None
    """In the last piece: `stop` or `length`."""
    completion_tokens: int = 0
    """In the last piece: number of tokens of the answer, with the one that ended it."""


class Pieces(Protocol):
    """The pieces of one answer, in order; closing it early frees what the answer occupies."""

    prompt_tokens: int

    def __aiter__(self) -> Self:
        """An iterator over pieces."""
        ...

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            StopAsyncIteration: After the last one.
            PastoError: If the engine cannot go on.
        """
        ...

    async def aclose(self) -> None:
        """Want no more of it."""
        ...


class Engine(Protocol):
    """What decodes: in this process, or behind it."""

    def models(self) -> Sequence[str]:
        """Names of the dials that a position may have."""
        ...

    def served(self, position: Position) -> Position:
        """Where the dials stand for a request that wants them at a position.

        It is the position itself but where an engine has only some: there the nearest one.

        Raises:
            Refusal: If it has none that will do.
        """
        ...

    async def load(self, position: Position) -> None:
        """Make a position ready, so that its first request does not wait for that."""
        ...

    async def stream(self, request: Request, position: Position) -> Pieces:
        """Begin an answer.

        Raises:
            Refusal: Before anything is decoded, for a request that cannot be answered.
        """
        ...

    def close(self) -> None:
        """End all answers and let everything go."""
        ...
