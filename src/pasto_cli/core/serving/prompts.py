"""A request's prompt as token ids, rendered by the base's own template, and the room after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat
from pasto_cli.core.serving.engine import Message, Prompt, Refusal
from pasto_cli.core.serving.limits import Limits


def token_ids(chat: Chat, vocabulary: int, prompt: Prompt) -> list[int]:
    """Token ids of a prompt.

    Args:
        chat: The base's tokenizer and template.
        vocabulary: Number of tokens that the base knows.
        prompt: A conversation, a text, or ids.

    Raises:
        Refusal: If the template refuses the messages, ids are not of this vocabulary, there is no
            token, or there are more than the model takes.
    """
    with _too_long_refused():
        ids = _encoded(chat, vocabulary, prompt)
    if not ids:
        raise Refusal("the prompt is empty", "Send at least one token.", param="prompt")
    return ids


def _encoded(chat: Chat, vocabulary: int, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return chat.encode(prompt)
    if not all(isinstance(part, int) for part in prompt):
        return chat.ids(rendered(chat, [m for m in prompt if not isinstance(m, int)]))
    ids = [part for part in prompt if isinstance(part, int)]
    if not all(0 <= token < vocabulary for token in ids):
        raise Refusal(
            f"the prompt has token ids beyond the vocabulary of {vocabulary}",
            "Tokenise it with the tokenizer of the base model, or send text.",
            param="prompt",
        )
    return ids


def rendered(chat: Chat, messages: Sequence[Message]) -> str:
    """A conversation by the model's own template.

    Raises:
        Refusal: With the template's own words, if it does not take the messages.
    """
    try:
        return chat.render([message._asdict() for message in messages])
    except Exception as error:  # templates refuse by raising, each in its own way
        raise Refusal(
            f"the model's chat template refuses these messages: {error}",
            "Send messages as this model expects them, or use /v1/completions.",
            param="messages",
            code="chat_template",
        ) from None


def answer_ids(
    chat: Chat, messages: Sequence[Message], prompt: list[int], answer: str
) -> list[int]:
    """Token ids of an answer that is there already, as they follow a prompt.

    Args:
        chat: The base's tokenizer and template.
        messages: The conversation before it.
        prompt: Its token ids.
        answer: The answer.

    Raises:
        Refusal: If it has no token, or more than the model takes.
    """
    with _too_long_refused():
        ids = chat.continuation(rendered(chat, messages), prompt, answer)
    if not ids:
        raise Refusal("the answer is empty", "Send at least one token.", param="messages")
    return ids


@contextmanager
def _too_long_refused() -> Iterator[None]:
    """More tokens than the model has, or ones that it does not know, as the client's mistake."""
    try:
        yield
    except Refusal:
        raise
    except PastoError as error:
        code = "context_length_exceeded"
        raise Refusal(error.message, error.hint, param="prompt", code=code) from None


def answer_length(prompt: int, wanted: int | None, context: int, limits: Limits) -> int:
    """Number of tokens that an answer may have.

    Args:
        prompt: Length of the prompt, tokens.
        wanted: What the request says.
        context: Tokens that the model takes.
        limits: What the server takes on.

    Raises:
        Refusal: If both do not fit into the context, or one of them is beyond the limits.
    """
    _check_limits(prompt, wanted, limits)
    room = context - prompt
    if room < (wanted or 1):
        raise Refusal(
            f"a prompt of {prompt} tokens and an answer of {wanted or 1} do not fit into the "
            f"model's context of {context}",
            "Send a shorter prompt, or lower max_tokens.",
            param="max_tokens" if room > 0 else None,
            code="context_length_exceeded",
        )
    most = limits.answer_tokens or room
    return wanted or min(limits.max_tokens, room, most)


def _check_limits(prompt: int, wanted: int | None, limits: Limits) -> None:
    """Refuse what is longer than this server takes on, whatever the model could."""
    longest = limits.prompt_tokens
    if longest is not None and prompt > longest:
        raise Refusal(
            f"the prompt has {prompt} tokens, at most {longest} are taken here",
            "Send a shorter prompt.",
            code="context_length_exceeded",
        )
    most = limits.answer_tokens
    if most is not None and (wanted or 0) > most:
        raise Refusal(
            f"max_tokens is {wanted}, at most {most} are given here",
            "Lower max_tokens.",
            param="max_tokens",
            code="max_tokens_exceeded",
        )
