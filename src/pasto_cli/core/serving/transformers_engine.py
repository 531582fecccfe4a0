"""The engine in this process: transformers, on a thread of its own.

Only that thread touches the model. Others hand it rows through a queue; pieces come back into the
event loop of the caller.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Self, TypeVar

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.serving.disturbance import TokenKL, with_texts
from pasto_cli.core.serving.engine import (
    Message,
    Occupancy,
    Piece,
    Pieces,
    Position,
    Refusal,
    Request,
)
from pasto_cli.core.serving.limits import USUAL, Limits
from pasto_cli.core.serving.prompts import answer_ids, answer_length, token_ids
from pasto_cli.core.serving.scheduler import Row, Scheduler
from pasto_cli.core.serving.text import TextWriter
from pasto_cli.core.steering.steerer import Steerer

T = TypeVar("T")


class TransformersEngine:
    """Decodes on a loaded base, with continuous batching; see `Engine` for its methods.

    Args:
        lm: The base model; nothing else may use it until `close`.
        dials: Steerers that change the model, by name.
        limits: How much is taken on.

    Raises:
        PastoError: If the model cannot be batched.
    """

    def __init__(
        self, lm: LoadedModel, dials: Mapping[str, Steerer], limits: Limits = USUAL
    ) -> None:
        self.lm = lm
        self.limits = limits
        config = lm.model.config.get_text_config()
        self._context: int = getattr(config, "max_position_embeddings", None) or 2**31
        self._vocabulary: int = lm.model.get_input_embeddings().weight.shape[0]
        self.scheduler = Scheduler(lm, dials, limits.rows)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._door = threading.Lock()
        """Held while something is put into the inbox: nothing comes in after `close`."""
        self._thread = threading.Thread(target=self._run, name="pasto-engine", daemon=True)
        self._thread.start()

    def models(self) -> list[str]:
        """See `Engine.models`."""
        return list(self.scheduler.dials)

    def served(self, position: Position) -> Position:
        """See `Engine.served`."""
        return position

    async def load(self, position: Position) -> None:
        """See `Engine.load`: M(a) is computed and kept."""

        def enter() -> None:
            for name, coefficient in position.items():
                with self.scheduler.dials[name].at(coefficient):
                    pass

        await self._between_turns(enter)

    async def stream(self, request: Request, position: Position) -> Pieces:
        """See `Engine.stream`."""
        ids = token_ids(self.lm.chat, self._vocabulary, request.prompt)
        wanted = request.sampling.max_tokens
        longest = answer_length(len(ids), wanted, self._context, self.limits)
        self._refuse_if_full()
        answer = _Answer(len(ids))
        writer = TextWriter(self.lm.tokenizer, request.sampling.stop)
        row = Row(ids, position, request.sampling, longest, answer.deliver, writer)
        answer.cancelled = row.cancelled
        self._put(lambda: self.scheduler.waiting.append(row))
        return answer

    def occupancy(self) -> Occupancy:
        """How much it has to do now; may be asked from any thread."""
        waiting = len(self.scheduler.waiting) + self._inbox.qsize()
        return Occupancy(len(self.scheduler.rows), waiting)

    async def disturbance(
        self, messages: Sequence[Message], answer: str, position: Position
    ) -> list[TokenKL]:
        """See `Measures.disturbance`."""
        prompt = token_ids(self.lm.chat, self._vocabulary, messages)
        ids = answer_ids(self.lm.chat, messages, prompt, answer)
        answer_length(len(prompt), len(ids), self._context, self.limits)
        self._refuse_if_full()
        kl = await self._between_turns(lambda: self.scheduler.disturbance(prompt, ids, position))
        return with_texts(self.lm.tokenizer, ids, kl)

    def close(self) -> None:
        """See `Engine.close`."""
        with self._door:
            self._closing.set()
            self._inbox.put(lambda: None)  # wakes the thread
        self._thread.join()

    async def _between_turns(self, work: Callable[[], T]) -> T:
        """What `work` gives, done on the engine's thread."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(finish: Callable[[], None]) -> None:
            if not done.cancelled():  # its owner may have given up
                finish()

        send = _into(loop, settle)

        def do() -> None:
            try:
                send(partial(done.set_result, work()))
            except Exception as error:
                send(partial(done.set_exception, error))

        self._put(do)
        return await done

    def _refuse_if_full(self) -> None:
        if self.occupancy().waiting >= self.limits.waiting:
            raise Refusal(
                f"{self.limits.waiting} answers are waiting already",
                "Ask again in a few seconds.",
                code="overloaded",
                status=429,
            )

    def _put(self, action: Callable[[], None]) -> None:
        with self._door:
            if self._closing.is_set():
                raise _stopping()
            self._inbox.put(action)

    def _run(self) -> None:
        """The engine's thread."""
        while not self._closing.is_set():
            self._take_in()
            try:
                self.scheduler.turn()
            except Exception as error:  # a thread that dies would leave every client waiting
                self.scheduler.fail(error)
        while not self._inbox.empty():
            self._inbox.get()()
        self.scheduler.fail(_stopping())

    def _take_in(self) -> None:
        """Do what is in the inbox; wait for something where there is nothing else to do."""
        try:
            self._inbox.get(block=not self.scheduler.busy)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return


class _Answer:
    """The pieces of one row, brought from the engine's thread into an event loop."""

    cancelled: threading.Event

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._over = False
        self.deliver = _into(asyncio.get_running_loop(), self._pieces.put_nowait)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            self._over = True
            raise piece
        self._over = piece.finish is not None
        return piece

    async def aclose(self) -> None:
        self._over = True
        self.cancelled.set()


def _stopping() -> Refusal:
    return Refusal("the server is stopping", "Ask again later.", code="stopping", status=503)


def _into(loop: asyncio.AbstractEventLoop, receive: Callable[[T], None]) -> Callable[[T], None]:
    """A function for another thread that has `receive` called inside a loop."""

    def send(value: T) -> None:
        try:
            loop.call_soon_threadsafe(receive, value)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    return send
