"""Replies in OpenAI's form: whole, as chunks of a stream, and errors.

Both kinds of completion differ in the names of their parts only; a `Form` knows these.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Piece, Refusal, TokenLogprob

Json = dict[str, Any]


class Form(Protocol):
    """The parts of one kind of completion."""

    prefix: str
    whole: str
    chunk: str

    def opening(self) -> Json | None:
        """What a choice's first chunk says before any text; None for nothing."""
        ...

    def text(self, text: str, streamed: bool) -> Json:
        """The text of a choice."""
        ...

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """Log-probabilities of tokens that begin at an offset of the answer, characters."""
        ...


class ChatForm:
    """/v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Json:
        """See `Form`."""
        return {"delta": {"role": "assistant", "content": ""}}

    def text(self, text: str, streamed: bool) -> Json:
        """See `Form`."""
        if streamed:
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:  # noqa: ARG002
        """See `Form`."""
        content = [
            _token(told.token, told.logprob)
            | {"top_logprobs": [_token(token, logprob) for token, logprob in told.top]}
            for told in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionForm:
    """/v1/completions."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def opening(self) -> None:
        """See `Form`."""
        return

    def text(self, text: str, streamed: bool) -> Json:  # noqa: ARG002
        """See `Form`."""
        return {"text": text}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """See `Form`."""
        offsets = []
        for told in tokens:
            offsets.append(offset)
            offset += len(told.token)
        return {
            "tokens": [told.token for told in tokens],
            "token_logprobs": [told.logprob for told in tokens],
            "top_logprobs": [dict(told.top) for told in tokens],
            "text_offset": offsets,
        }


class Reply:
    """One reply, while it is being made.

    Args:
        form: Its kind.
        model: Name of the position that answers.
        logprobs: Whether log-probabilities are told.
        nearest_to: Name of the position that was asked for, where another one answers.
    """

    def __init__(
        self, form: Form, model: str, logprobs: bool, nearest_to: str | None = None
    ) -> None:
        self.form, self.model, self.tells = form, model, logprobs
        self.nearest_to = nearest_to
        self.id = f"{form.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that say what the body says of where the dials stand."""
        return {"X-Pasto-Nearest-To": self.nearest_to} if self.nearest_to else {}

    def whole(self, choices: Sequence[Sequence[Piece]], prompt_tokens: int) -> Json:
        """The reply to a request that is not streamed, from all pieces of each choice."""
        made = []
        for index, pieces in enumerate(choices):
            text = "".join(piece.text for piece in pieces)
            tokens = [told for piece in pieces for told in piece.tokens]
            made.append(self._choice(index, Piece(text, tokens, pieces[-1].finish), streamed=False))
        used = sum(pieces[-1].completion_tokens for pieces in choices)
        return self._head(self.form.whole, made) | {"usage": usage(prompt_tokens, used)}

    def opening(self, index: int) -> Json | None:
        """The chunk that opens a choice."""
        found = self.form.opening()
        if found is None:
            return None
        choice = {"index": index, **found, "logprobs": None, "finish_reason": None}
        return self._head(self.form.chunk, [choice])

    def chunk(self, index: int, piece: Piece, offset: int) -> Json:
        """The chunk of a piece that begins at an offset of its answer, characters."""
        return self._head(self.form.chunk, [self._choice(index, piece, True, offset)])

    def last(self, prompt_tokens: int, completion_tokens: int) -> Json:
        """The chunk that tells what was used."""
        return self._head(self.form.chunk, []) | {"usage": usage(prompt_tokens, completion_tokens)}

    def _head(self, kind: str, choices: list[Json]) -> Json:
        head: Json = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        return head | ({"nearest_to": self.nearest_to} if self.nearest_to else {})

    def _choice(self, index: int, piece: Piece, streamed: bool, offset: int = 0) -> Json:
        told = self.form.logprobs(piece.tokens, offset) if self.tells else None
        return {
            "index": index,
            **self.form.text(piece.text, streamed),
            "logprobs": told,
            "finish_reason": piece.finish,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Counts of tokens; a prompt counts once, however many answers it gets."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error_body(error: Exception) -> tuple[int, Json]:
    """HTTP status and body of an error; only what is no mistake of the client is a 500."""
    if isinstance(error, Refusal):
        status, param, code = error.status, error.param, error.code
    else:
        status, param, code = (400 if isinstance(error, PastoError) else 500), None, None
    if isinstance(error, PastoError):
        message = f"{error.message}. {error.hint}" if error.hint else error.message
    else:
        message = f"the server failed: {type(error).__name__}: {error}"
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _token(token: str, logprob: float) -> Json:
    # A token may be a part of a character, whose bytes its text no longer has.
    known = "\ufffd" not in token
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if known else None}
