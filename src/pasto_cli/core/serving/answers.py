"""The answers to one HTTP request, which come side by side."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pasto_cli.core.serving.engine import Engine, Piece, Pieces, Position, Refusal, Request


@dataclass
class Clock:
    """When the pieces of one answer came, seconds of `time.perf_counter`."""

    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    """Number of pieces, until the last one says how many tokens they were."""
    ended: bool = False

    def note(self, piece: Piece) -> None:
        """A piece that comes now."""
        self.last = time.perf_counter()
        self.first = self.last if self.first is None else self.first
        self.ended = piece.finish is not None
        self.tokens = piece.completion_tokens if self.ended else self.tokens + 1

    @property
    def pause(self) -> float | None:
        """Mean seconds from a token to the next, None for less than two tokens."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


class Answers:
    """Several streams of pieces as one; closing it frees all of them.

    Args:
        streams: One for each choice of the reply.
        deadline: When they must have ended, in the loop's time; None for no end.
    """

    def __init__(self, streams: Sequence[Pieces], deadline: float | None = None) -> None:
        self.streams = streams
        self.deadline = deadline
        self.clocks = [Clock() for _ in streams]

    @classmethod
    async def begin(
        cls,
        engine: Engine,
        requests: Sequence[Request],
        position: Position,
        deadline: float | None = None,
    ) -> "Answers":
        """Begin all answers, or none.

        Raises:
            Refusal: For a request that cannot be answered, or if the time is over.
        """
        streams: list[Pieces] = []
        try:
            for request in requests:
                async with in_time(deadline):
                    streams.append(await engine.stream(request, position))
        except BaseException:
            await cls(streams).aclose()
            raise
        return cls(streams, deadline)

    @property
    def over(self) -> bool:
        """Whether every answer came to its end."""
        return all(clock.ended for clock in self.clocks)

    def prompt_tokens(self, choices: int) -> int:
        """Tokens of all prompts, each of which has some choices."""
        return sum(stream.prompt_tokens for stream in self.streams[::choices])

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the choice, piece), in the order in which pieces come."""
        coming: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()

        async def pump(index: int, stream: Pieces) -> None:
            try:
                async for piece in stream:
                    coming.put_nowait((index, piece))
            except Exception as error:
                coming.put_nowait((index, error))

        tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(self.streams)]
        try:
            left = len(tasks)
            while left:
                async with in_time(self.deadline):
                    index, piece = await coming.get()
                if isinstance(piece, Exception):
                    raise piece
                self.clocks[index].note(piece)
                left -= piece.finish is not None
                yield index, piece
        finally:
            for task in tasks:
                task.cancel()

    async def collect(self) -> list[list[Piece]]:
        """All pieces of each choice."""
        found: list[list[Piece]] = [[] for _ in self.streams]
        async for index, piece in self:
            found[index].append(piece)
        return found

    async def aclose(self) -> None:
        """Want no more of any."""
        for stream in self.streams:
            await stream.aclose()


@asynccontextmanager
async def in_time(deadline: float | None, status: int = 504) -> AsyncIterator[None]:
    """Do something before a time of the loop.

    Raises:
        Refusal: With a status, when it is over.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise Refusal(
            "the time that this server gives a request is over",
            "Ask for less at once: fewer tokens, a shorter prompt.",
            code="timeout",
            status=status,
        ) from None
