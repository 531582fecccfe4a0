"""The engine in this process: transformers, on a thread of its own.

Only that thread touches the model. Others hand it rows through a queue; pieces come back into the
event loop of the caller.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self, TypeVar

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.serving.disturbance import TokenKL, with_texts
from pasto_cli.core.serving.engine import (
    Message,
    Occupancy,
    Piece,
    Pieces,
    Position,
    Prompt,
    Refusal,
    Request,
)
from pasto_cli.core.serving.scheduler import Row, Scheduler
from pasto_cli.core.serving.text import TextWriter
from pasto_cli.core.steering.steerer import Steerer

T = TypeVar("T")


class Limits(NamedTuple):
    """How much is taken on."""

    rows: int = 16
    """Most answers that decode together; the others wait."""
    waiting: int = 256
    """Most answers that wait; more are refused."""
    max_tokens: int = 512
    """Longest answer where a request says nothing."""
    prompt_tokens: int | None = None
    """Longest prompt; None for the model's context."""
    answer_tokens: int | None = None
    """Longest answer that a request may ask for; None for what the context leaves."""


USUAL = Limits()


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

    async def load(self, position: Position) -> None:
        """See `Engine.load`: M(a) is computed and kept."""

        def enter() -> None:
            for name, coefficient in position.items():
                with self.scheduler.dials[name].at(coefficient):
                    pass

        await self._between_turns(enter)

    async def stream(self, request: Request, position: Position) -> Pieces:
        """See `Engine.stream`."""
        try:
            ids = self._tokens(request.prompt)
        except Refusal:
            raise
        except PastoError as error:  # more tokens than the model has, or others
            code = "context_length_exceeded"
            raise Refusal(error.message, error.hint, param="prompt", code=code) from None
        longest = self._longest(len(ids), request.sampling.max_tokens)
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
        prompt = self._tokens(messages)
        ids = self.lm.chat.continuation(self._rendered(messages), prompt, answer)
        if not ids:
            raise Refusal("the answer is empty", "Send at least one token.", param="messages")
        self._longest(len(prompt), len(ids))
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

    def _tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        chat = self.lm.chat
        if isinstance(prompt, str):
            ids = chat.encode(prompt)
        elif all(isinstance(part, int) for part in prompt):
            ids = [part for part in prompt if isinstance(part, int)]
            size = self.lm.model.get_input_embeddings().weight.shape[0]
            if not all(0 <= token < size for token in ids):
                raise Refusal(
                    f"the prompt has token ids beyond the vocabulary of {size}",
                    "Tokenise it with the tokenizer of the base model, or send text.",
                    param="prompt",
                )
        else:
            ids = chat.ids(self._rendered([m for m in prompt if not isinstance(m, int)]))
        if not ids:
            raise Refusal("the prompt is empty", "Send at least one token.", param="prompt")
        return ids

    def _rendered(self, messages: Sequence[Message]) -> str:
        """A conversation by the model's own template."""
        try:
            return self.lm.chat.render([message._asdict() for message in messages])
        except Exception as error:  # templates refuse by raising, each in its own way
            raise Refusal(
                f"the model's chat template refuses these messages: {error}",
                "Send messages as this model expects them, or use /v1/completions.",
                param="messages",
                code="chat_template",
            ) from None

    def _longest(self, prompt: int, wanted: int | None) -> int:
        """Number of tokens that an answer may have.

        Args:
            prompt: Length of the prompt, tokens.
            wanted: What the request says.
        """
        self._check_limits(prompt, wanted)
        config = self.lm.model.config.get_text_config()
        room = (getattr(config, "max_position_embeddings", None) or 2**31) - prompt
        if room < (wanted or 1):
            raise Refusal(
                f"a prompt of {prompt} tokens and an answer of {wanted or 1} do not fit into the "
                f"model's context of {room + prompt}",
                "Send a shorter prompt, or lower max_tokens.",
                param="max_tokens" if room > 0 else None,
                code="context_length_exceeded",
            )
        most = self.limits.answer_tokens or room
        return wanted or min(self.limits.max_tokens, room, most)

    def _check_limits(self, prompt: int, wanted: int | None) -> None:
        """Refuse what is longer than this server takes on, whatever the model could."""
        longest = self.limits.prompt_tokens
        if longest is not None and prompt > longest:
            raise Refusal(
                f"the prompt has {prompt} tokens, at most {longest} are taken here",
                "Send a shorter prompt.",
                code="context_length_exceeded",
            )
        most = self.limits.answer_tokens
        if most is not None and (wanted or 0) > most:
            raise Refusal(
                f"max_tokens is {wanted}, at most {most} are given here",
                "Lower max_tokens.",
                param="max_tokens",
                code="max_tokens_exceeded",
            )


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
