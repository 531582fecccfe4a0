"""`pasto chat`: a conversation with a model whose dials turn between answers.

The engine is the one of `pasto serve`: it streams, and positions that are compared share a batch.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.serving.engine import Message, Position, Refusal, Request, Sampling
from pasto_cli.core.serving.positions import BASE, name_of
from pasto_cli.workflows.serve import Service

Write = Callable[[str], None]
"""Receives text as it comes."""


@dataclass
class Turn:
    """One message of a conversation."""

    role: str
    content: str
    position: dict[str, float] | None = None
    """Where the dials stood; of answers only."""
    interrupted: bool = False

    def record(self) -> dict[str, Any]:
        """As a line of JSON."""
        more: dict[str, Any] = {}
        if self.position is not None:
            more = {"model": name_of(self.position), "dial": self.position}
        if self.interrupted:
            more["interrupted"] = True
        return {"role": self.role, "content": self.content} | more


@dataclass
class Conversation:
    """Questions and answers so far, and where the dials stand for the next one.

    Close it in the end: it holds the engine.
    """

    service: Service
    sampling: Sampling
    """How tokens are chosen; its longest answer is the engine's."""
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    position: dict[str, float] = field(init=False)
    """Dials at 0 are left out."""

    def __post_init__(self) -> None:
        self._runner = asyncio.Runner()
        self._saved: set[Path] = set()
        own = self.service.positions.own
        # As `pasto generate`: a dial that was named stands at 1.
        wanted = {name: 1.0 if c is None else c for name, c in own.items()}
        self.position = self.service.positions.read(BASE, wanted)

    @property
    def dials(self) -> list[str]:
        """Their names."""
        return list(self.service.positions.own)

    def turn_to(self, model: str) -> None:
        """Put all dials where a model name says: `honest@-0.5`, `base`.

        Raises:
            Refusal: See `Positions.read`.
        """
        self.position = self.service.positions.read(model)

    def turn(self, name: str, coefficient: str) -> None:
        """Put one dial somewhere; the others stay.

        Raises:
            Refusal: For an unknown dial, or what is no coefficient.
        """
        self.position = self._with(name, coefficient)

    def answer(self, question: str, write: Write) -> Turn:
        """Answer a question; both become part of the conversation.

        Ctrl-C ends the answer where it is, and what was written of it stays.

        Args:
            question: The user's message.
            write: Receives the answer as it comes.

        Returns:
            The answer.

        Raises:
            PastoError: If there is none; then the conversation is as it was.
        """
        turn = Turn("assistant", "", dict(self.position))

        def keep(text: str) -> None:
            turn.content += text
            write(text)

        self.turns.append(Turn("user", question))
        try:
            self._runner.run(self._stream([self.position], lambda _: None, keep))
        except KeyboardInterrupt:
            turn.interrupted = True
        except BaseException:
            self.turns.pop()
            raise
        self.turns.append(turn)
        return turn

    def compare(
        self, name: str, coefficients: Sequence[str], begin: Callable[[str], None], write: Write
    ) -> None:
        """Answer the last question with a dial at several coefficients; they share a batch.

        Args:
            name: The dial; the others stay where they are.
            coefficients: Numbers as text.
            begin: Told the name of each position before its answer.
            write: Receives the answers one after the other.

        Raises:
            PastoError: If nothing was asked, or for what is no coefficient.
            KeyboardInterrupt: At Ctrl-C.
        """
        positions = [self._with(name, c) for c in coefficients]
        if not self.turns:
            raise PastoError("nothing was asked yet", "Ask something first.")
        last = max(i for i, turn in enumerate(self.turns) if turn.role == "user")
        self._runner.run(self._stream(positions, begin, write, self.turns[: last + 1]))

    def reset(self) -> None:
        """Forget all questions and answers; the system message stays."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Write the conversation: markdown if the file's name ends in .md, else lines of JSON.

        Raises:
            PastoError: If there is a file that this conversation has not written.
        """
        if path.exists() and path.resolve() not in self._saved:
            raise PastoError(f"{path} is there already", "Give another name.")
        if not path.parent.is_dir():
            raise PastoError(f"{path.parent} is no folder", "Create it first.")
        turns = [*self._opening(), *self.turns]
        if path.suffix == ".md":
            text = f"# Conversation with {self.service.base}\n\n" + "\n".join(map(_markdown, turns))
        else:
            text = "".join(json.dumps(t.record(), ensure_ascii=False) + "\n" for t in turns)
        write_text(path, text)
        self._saved.add(path.resolve())

    def close(self) -> None:
        """Let the engine go."""
        self._runner.close()
        self.service.engine.close()

    def _with(self, name: str, coefficient: str) -> dict[str, float]:
        return self.service.positions.read(BASE, self.position | {name: coefficient})

    def _opening(self) -> list[Turn]:
        return [] if self.system is None else [Turn("system", self.system)]

    async def _stream(
        self,
        positions: Sequence[Position],
        begin: Callable[[str], None],
        write: Write,
        turns: Sequence[Turn] | None = None,
    ) -> None:
        """Begin all answers at once, and write them one after the other."""
        asked = [*self._opening(), *(self.turns if turns is None else turns)]
        request = Request([Message(t.role, t.content) for t in asked], self.sampling)
        streams = []
        try:
            for position in positions:
                streams.append(await self.service.engine.stream(request, position))
            for position, stream in zip(positions, streams, strict=True):
                begin(name_of(position))
                async for piece in stream:
                    write(piece.text)
        except Refusal as error:
            if error.code != "context_length_exceeded":
                raise
            hint = "The conversation is too long: /reset begins a new one."
            raise PastoError(error.message, hint) from None
        finally:
            for stream in streams:
                await stream.aclose()


def _markdown(turn: Turn) -> str:
    who = {"user": "You", "system": "System"}.get(turn.role) or name_of(turn.position or {})
    stopped = " (interrupted)" if turn.interrupted else ""
    return f"**{who}**{stopped}\n\n{turn.content}\n"
