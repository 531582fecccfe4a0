"""A stand-in for a tokenizer that is not here: words and signs as tokens.

A plan that was made with it says so.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any

from pasto_cli.core.models.chat import Chat

_PIECES = re.compile(r"\w{1,8}|[^\w\s]")
_BEFORE = "start of the turn of the user"
_AFTER = "end of turn ; assistant"
"""As long as the usual chat templates: about a dozen tokens together."""


class _Words:
    """What `Chat` asks of a tokenizer."""

    chat_template = "words"
    bos_token = eos_token = bos_token_id = eos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:  # noqa: ARG002
        """Token ids: a hash of each piece."""
        pieces: list[str] = _PIECES.findall(text)
        return {"input_ids": [zlib.crc32(piece.encode()) % 8000 for piece in pieces]}

    def get_chat_template(self) -> str:
        """No template to speak of."""
        return self.chat_template

    def get_added_vocab(self) -> dict[str, int]:
        """No tokens but words."""
        return {}

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> str:
        """A rendered prompt."""
        return f"{_BEFORE} {' '.join(m['content'] for m in messages)} {_AFTER} "


def word_chat(system: str | None) -> Chat:
    """A chat whose tokens are words."""
    return Chat(_Words(), system)
