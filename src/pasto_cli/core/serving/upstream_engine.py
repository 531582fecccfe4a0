"""What engines behind an upstream share: prompts become tokens here, texts come from there.

Prompts are rendered and tokenised by pasto and sent as token ids, so that an answer does not depend
on how an upstream reads templates. All that chooses tokens is said in every request: servers take
what is missing from a checkpoint's generation_config.json, or from habits of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing, suppress
from typing import Any, NamedTuple, Self

from pasto_cli.core.models.chat import Chat
from pasto_cli.core.serving.engine import (
    Occupancy,
    Piece,
    Position,
    Refusal,
    Request,
    Sampling,
    TokenLogprob,
)
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.prompts import answer_length, token_ids
from pasto_cli.core.serving.upstream import Events, Json, Upstream


class ServedBase(NamedTuple):
    """What must be known of a base to speak for it; its weights are the upstream's."""

    chat: Chat
    vocabulary: int
    """Number of tokens."""
    context: int
    """Tokens of a prompt and its answer together."""


class Place(NamedTuple):
    """Where a request finds its position at the upstream."""

    fields: Json
    """Added to the request."""
    release: Callable[[], None]
    """To be called once, when the answer has ended."""


class UpstreamEngine(ABC):
    """Decodes elsewhere; see `Engine` for its methods.

    Args:
        upstream: The server.
        base: What it serves.
        names: The dials.
        limits: How much is taken on; an upstream has one queue for answers that run and wait.
    """

    def __init__(
        self, upstream: Upstream, base: ServedBase, names: Sequence[str], limits: Limits
    ) -> None:
        self.upstream, self.base, self.names = upstream, base, list(names)
        self.limits = limits
        self.owned = ExitStack()
        """What goes with the engine, such as a server that was started for it."""
        self.running = 0
        """Answers that have begun and not ended."""

    def models(self) -> list[str]:
        """See `Engine.models`."""
        return self.names

    @abstractmethod
    def served(self, position: Position) -> Position:
        """See `Engine.served`."""

    @abstractmethod
    async def load(self, position: Position) -> None:
        """See `Engine.load`."""

    @abstractmethod
    async def place(self, position: Position) -> Place:
        """Make a position ready and hold it.

        Raises:
            Refusal: If the upstream does not take it.
        """

    @abstractmethod
    def own_fields(self, sampling: Sampling) -> Json:
        """How this upstream is told to leave logits alone, and of log-probabilities."""

    def close(self) -> None:
        """See `Engine.close`."""
        self.owned.close()

    async def stream(self, request: Request, position: Position) -> "UpstreamPieces":
        """See `Engine.stream`."""
        ids = token_ids(self.base.chat, self.base.vocabulary, request.prompt)
        wanted = request.sampling.max_tokens
        length = answer_length(len(ids), wanted, self.base.context, self.limits)
        most = self.limits.rows + self.limits.waiting
        if self.running >= most:
            raise Refusal(
                f"{most} answers are running or waiting already",
                "Ask again in a few seconds.",
                code="overloaded",
                status=429,
            )
        self.running += 1
        try:
            events, place = await self.begin(self._body(ids, length, request.sampling), position)
        except BaseException:
            self.running -= 1
            raise

        def release() -> None:
            self.running -= 1
            place.release()

        return UpstreamPieces(len(ids), events, request.sampling.logprobs, release)

    def occupancy(self) -> Occupancy:
        """How much it has to do; what waits at the upstream is not told apart."""
        return Occupancy(self.running, 0)

    async def begin(self, body: Json, position: Position) -> tuple[Events, Place]:
        """Send a request to where its position is."""
        place = await self.place(position)
        try:
            return await self.upstream.completion(body | place.fields), place
        except BaseException:
            place.release()
            raise

    def _body(self, ids: Sequence[int], length: int, sampling: Sampling) -> Json:
        """The request, but for where its position is."""
        body: Json = {
            "prompt": list(ids),
            "max_tokens": length,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed % 2**31  # what every upstream takes
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body | self.own_fields(sampling)


class UpstreamPieces:
    """The pieces of one answer, from an upstream's chunks; see `Pieces`.

    Args:
        prompt_tokens: Length of the prompt.
        events: The chunks.
        alternatives: Number of alternatives told with each token; None tells of no token.
        release: Called once, when nothing more is wanted.
    """

    def __init__(
        self,
        prompt_tokens: int,
        events: Events,
        alternatives: int | None,
        release: Callable[[], None],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.events, self.alternatives = events, alternatives
        self._release: Callable[[], None] | None = release
        self._pieces = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        try:
            piece = await anext(self._pieces)
        except BaseException:
            await self.aclose()
            raise
        if piece.finish is not None:
            await self.aclose()
        return piece

    async def _read(self) -> AsyncGenerator[Piece, None]:
        """Pieces; the last one waits for the count of tokens, which comes after its text."""
        last: Piece | None = None
        made = 0
        async with aclosing(aiter(self.events)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if usage := chunk.get("usage"):
                    made = usage.get("completion_tokens") or made
                for choice in chunk.get("choices") or ():
                    piece = self._piece(choice)
                    if piece.finish is not None:
                        last = piece
                    elif piece.text or piece.tokens:
                        yield piece
        if last is None:
            raise self.events.upstream.broken()
        last.completion_tokens = made
        yield last

    def _piece(self, choice: Json) -> Piece:
        tokens = []
        if self.alternatives is not None and choice.get("logprobs"):
            tokens = told_tokens(choice["logprobs"], self.alternatives)
        finish = choice.get("finish_reason")
        if finish not in (None, "stop", "length"):
            raise Refusal(f"the engine ended the answer: {finish}", "Ask again.", status=502)
        return Piece(choice.get("text") or "", tokens, finish)

    async def aclose(self) -> None:
        """See `Pieces.aclose`."""
        if self._release is not None:
            self._release()
            self._release = None
            with suppress(RuntimeError):  # somebody waits for its next piece, and is cancelled
                await self._pieces.aclose()
            await self.events.aclose()


def told_tokens(logprobs: Json, alternatives: int) -> list[TokenLogprob]:
    """Log-probabilities in either of OpenAI's two forms.

    Args:
        logprobs: Of a choice. Chats have `content`, a list of tokens; completions have lists side
            by side. llama.cpp uses the first form for both.
        alternatives: How many are wanted; upstreams may tell more.
    """
    if (content := logprobs.get("content")) is not None:
        return [
            TokenLogprob(
                told["token"],
                float(told["logprob"]),
                [(t["token"], float(t["logprob"])) for t in told.get("top_logprobs") or ()][
                    :alternatives
                ],
            )
            for told in content
        ]
    tops: Sequence[Any] = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
    return [
        TokenLogprob(
            token,
            float(logprob or 0.0),
            sorted((top or {}).items(), key=lambda each: -each[1])[:alternatives],
        )
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True
        )
    ]
