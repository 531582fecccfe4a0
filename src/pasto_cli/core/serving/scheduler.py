"""Continuous batching: rows join a running batch when they come and leave it when they end.

A turn is: the prompts that wait and have the length of the first one are run and join; then every
row gets one token. So a row's tokens go out as they are made, whatever the longest answer beside it
does, and rows stand at coefficients of their own (one per dial and row).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.serving.disturbance import kl_per_token
from pasto_cli.core.serving.engine import Piece, Position, Refusal, Sampling
from pasto_cli.core.serving.kv_batch import KVBatch
from pasto_cli.core.serving.sampling import Sampler, logprob_of
from pasto_cli.core.serving.text import TextWriter
from pasto_cli.core.steering.generation import end_tokens
from pasto_cli.core.steering.overflow import are_true
from pasto_cli.core.steering.steerer import Steerer


@dataclass(eq=False)
class Row:
    """One answer that is being written."""

    ids: Sequence[int]
    """The prompt."""
    position: Position
    sampling: Sampling
    max_tokens: int
    deliver: Callable[[Piece | Exception], None]
    """Receives pieces; an exception is the last thing that it receives."""
    writer: TextWriter
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by whoever wants no more of it, from any thread."""
    last: int = -1
    """The newest token."""
    made: int = 0
    """Number of tokens."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.sampling)


class Scheduler:
    """Rows that wait and rows that decode, on one model. It runs nothing by itself; see `turn`.

    Args:
        lm: The base model.
        dials: Steerers that change the model, by name.
        max_rows: Most rows that decode together.
    """

    def __init__(self, lm: LoadedModel, dials: Mapping[str, Steerer], max_rows: int) -> None:
        self.lm = lm
        self.dials = dials
        self.max_rows = max_rows
        self.batch = KVBatch(lm)
        self.rows: list[Row] = []
        """Those that decode, in the order of the batch."""
        self.waiting: deque[Row] = deque()
        self._contexts = ExitStack()
        self._standing: dict[str, float | tuple[float, ...]] | None = None
        """Where the dials stand inside these contexts: a coefficient for all rows, or one each."""
        self.ends = end_tokens(lm) or {lm.tokenizer.eos_token_id}

    @property
    def busy(self) -> bool:
        """Whether a turn has anything to do."""
        return bool(self.rows or self.waiting)

    def turn(self) -> None:
        """Let rows in, give every row a token, let rows go."""
        self._leave()
        if arrived := self._next_in():
            # Before they are in the batch: `fail` must know them if the prompts cannot be run.
            self.rows += arrived
            self._steer(arrived)
            logits = self.batch.prefill([row.ids for row in arrived])
            self._write(arrived, logits)
            self._leave()
        if self.rows:
            self._steer(self.rows)
            logits = self.batch.step([row.last for row in self.rows])
            self._write(self.rows, logits)
            self._leave()
        if not self.rows:
            self._release()

    def fail(self, error: Exception) -> None:
        """End every row with an error, and begin again with an empty batch."""
        rows, self.rows = [*self.rows, *self.waiting], []
        self.waiting.clear()
        self._release()
        self.batch = KVBatch(self.lm)
        for row in rows:
            if not row.ended:
                row.ended = True
                row.deliver(error)

    def disturbance(
        self, prompt: Sequence[int], answer: Sequence[int], position: Position
    ) -> list[float]:
        """See `kl_per_token`; to be called between turns, and the next one steers its rows anew."""
        self._release()

        @contextmanager
        def steered() -> Iterator[None]:
            with ExitStack() as stack:
                for name, coefficient in position.items():
                    stack.enter_context(self.dials[name].at(coefficient))
                yield

        return kl_per_token(self.lm, prompt, answer, steered)

    def _next_in(self) -> list[Row]:
        """The first row that waits, and those with prompts of its length, as far as they fit."""
        self.waiting = deque(row for row in self.waiting if not row.cancelled.is_set())
        room = self.max_rows - len(self.rows)
        if not self.waiting or room <= 0:
            return []
        length = len(self.waiting[0].ids)
        alike = [row for row in self.waiting if len(row.ids) == length][:room]
        self.waiting = deque(row for row in self.waiting if row not in alike)
        return alike

    def _leave(self) -> None:
        """Take rows that ended, or that nobody waits for, out of the batch."""
        kept = [i for i, row in enumerate(self.rows) if not (row.ended or row.cancelled.is_set())]
        self.batch.keep(kept)
        self.rows = [self.rows[i] for i in kept]

    def _steer(self, rows: Sequence[Row]) -> None:
        """Put every dial at each row's own coefficient, until rows of other positions run."""
        wanted: dict[str, float | tuple[float, ...]] = {}
        for name in self.dials:
            each = tuple(row.position.get(name, 0.0) for row in rows)
            # One for all rows spares the hooks a matrix per row.
            wanted[name] = each[0] if len(set(each)) == 1 else each
        if wanted == self._standing:
            return
        self._release()
        with ExitStack() as stack:
            for name, coefficients in wanted.items():
                if coefficients != 0.0:
                    stack.enter_context(self.dials[name].at(coefficients))
            self._contexts, self._standing = stack.pop_all(), wanted

    def _release(self) -> None:
        """Leave the base as it was."""
        self._standing = None
        self._contexts.close()

    def _write(self, rows: Iterable[Row], logits: Tensor) -> None:
        """Choose each row's next token from logits (rows, v), and send what text it gives."""
        # At once: each look at a GPU's result waits for it.
        likeliest, true = logits.argmax(-1).tolist(), are_true(logits).tolist()
        for row, own, token, sound in zip(rows, logits, likeliest, true, strict=True):
            if not sound:
                self._refuse(row)
                continue
            if not row.sampling.greedy:
                token = row.sampler.choose(own)
            row.last, row.made = token, row.made + 1
            if token in self.ends:
                self._end(row, Piece(""), "stop")
                continue
            told = None
            if row.sampling.logprobs is not None:
                told = logprob_of(self.lm.tokenizer, own, token, row.sampling.logprobs)
            piece = row.writer.push(token, told)
            if row.writer.stopped:
                self._end(row, piece, "stop")
            elif row.made >= row.max_tokens:
                self._end(row, piece, "length")
            elif piece.text or piece.tokens:
                row.deliver(piece)

    def _refuse(self, row: Row) -> None:
        """End a row whose numbers overflowed; its neighbours go on."""
        row.ended = True
        row.deliver(
            Refusal(
                f"the model has no finite logits with its dials at {dict(row.position)}",
                "Turn them less: -1 and 1 are the ends.",
                param="dial",
                code="not_finite",
            )
        )

    def _end(self, row: Row, piece: Piece, reason: str) -> None:
        """Send the last piece of a row."""
        rest = row.writer.finish()
        # What was held back may turn out to hold a stop text.
        reason = "stop" if row.writer.stopped else reason
        tokens = piece.tokens + rest.tokens
        row.ended = True
        row.deliver(Piece(piece.text + rest.text, tokens, reason, row.made))
