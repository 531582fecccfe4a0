"""The answers to one HTTP request, which come side by side."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from pasto_cli.core.serving.engine import Engine, Piece, Pieces, Position, Request


class Answers:
    """Several streams of pieces as one; closing it frees all of them.

    Args:
        streams: One for each choice of the reply.
    """

    def __init__(self, streams: Sequence[Pieces]) -> None:
        self.streams = streams

    @classmethod
    async def begin(
        cls, engine: Engine, requests: Sequence[Request], position: Position
    ) -> "Answers":
        """Begin all answers, or none.

        Raises:
            Refusal: For a request that cannot be answered.
        """
        answers = cls(streams := [])
        try:
            for request in requests:
                streams.append(await engine.stream(request, position))
        except BaseException:
            await answers.aclose()
            raise
        return answers

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
                index, piece = await coming.get()
                if isinstance(piece, Exception):
                    raise piece
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
