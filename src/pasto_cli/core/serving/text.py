"""Text from tokens as they come: whole characters only, and nothing that a stop text may take back.

The pieces of an answer put together are the decoded tokens, up to the stop text.
"""

from collections.abc import Sequence
from typing import Any

from pasto_cli.core.serving.engine import Piece, TokenLogprob


class TextWriter:
    """The text of one row.

    Args:
        tokenizer: Decodes.
        stop: Texts before which the answer ends.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._ids: list[int] = []
        self._context, self._read = 0, 0
        self._held = ""
        """Decoded, not yet sent."""
        self._tokens: list[tuple[int, TokenLogprob]] = []
        """(place in the held text where it begins, token), of tokens not yet sent."""

    def push(self, token: int, told: TokenLogprob | None = None) -> Piece:
        """Take a token; what can be sent now, which may be nothing."""
        self._ids.append(token)
        if told is not None:
            self._tokens.append((len(self._held), told))
        self._held += self._decoded(last=False)
        return self._sendable(last=False)

    def finish(self) -> Piece:
        """The rest."""
        self._held += self._decoded(last=True)
        return self._sendable(last=True)

    def _decoded(self, last: bool) -> str:
        """Text of the tokens since the last call that gave some.

        Tokens are decoded after those of the last piece, since some tokenizers write the first
        token of a text without its space.
        """
        before = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        # A character whose bytes are spread over tokens is incomplete until the last of them.
        if text.endswith("\ufffd") and not last:
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _sendable(self, last: bool) -> Piece:
        """Cut what is sure off the held text."""
        if self.stopped:
            return Piece("")
        places = [place for text in self.stop if (place := self._held.find(text)) >= 0]
        if places:
            self.stopped, end = True, min(places)
        else:
            end = len(self._held) - (0 if last else self._doubtful())
        piece = Piece(self._held[:end])
        sent = [told for place, told in self._tokens if place < end or (last and not places)]
        piece.tokens = sent
        self._tokens = [(place - end, told) for place, told in self._tokens[len(sent) :]]
        self._held = self._held[end:]
        return piece

    def _doubtful(self) -> int:
        """Number of characters at the end that may be the beginning of a stop text."""
        return max(
            (
                n
                for text in self.stop
                for n in range(1, min(len(text), len(self._held) + 1))
                if self._held.endswith(text[:n])
            ),
            default=0,
        )
