"""A request's prompt as token ids, rendered by the base's own template, and the room after it."""

from collections.abc import Sequence

from pasto_cli.core.models.chat import Chat
from pasto_cli.core.serving.engine import Prompt, Refusal


def token_ids(chat: Chat, vocabulary: int, prompt: Prompt) -> list[int]:
    """Token ids of a prompt.

    Args:
        chat: The base's tokenizer and template.
        vocabulary: Number of tokens that the base knows.
        prompt: A conversation, a text, or ids.

    Raises:
        Refusal: If the template refuses the messages, ids are not of this vocabulary, or there is
            no token.
    """
    if isinstance(prompt, str):
        ids = chat.encode(prompt)
    elif all(isinstance(part, int) for part in prompt):
        ids = [part for part in prompt if isinstance(part, int)]
        if not all(0 <= token < vocabulary for token in ids):
            raise Refusal(
                f"the prompt has token ids beyond the vocabulary of {vocabulary}",
                "Tokenise it with the tokenizer of the base model, or send text.",
                param="prompt",
            )
    else:
        messages = [m._asdict() for m in prompt if not isinstance(m, int)]
        try:
            text = chat.render(messages)
        except Exception as error:  # templates refuse by raising, each in its own way
            raise Refusal(
                f"the model's chat template refuses these messages: {error}",
                "Send messages as this model expects them, or use /v1/completions.",
                param="messages",
                code="chat_template",
            ) from None
        ids = chat.ids(text)
    if not ids:
        raise Refusal("the prompt is empty", "Send at least one token.", param="prompt")
    return ids


def answer_length(prompt: Sequence[int], wanted: int | None, context: int, usual: int) -> int:
    """Number of tokens that an answer may have.

    Args:
        prompt: Its token ids.
        wanted: What the request says.
        context: Tokens that the model takes.
        usual: Longest answer where a request says nothing.

    Raises:
        Refusal: If both do not fit.
    """
    room = context - len(prompt)
    if room < (wanted or 1):
        raise Refusal(
            f"a prompt of {len(prompt)} tokens and an answer of {wanted or 1} do not fit into the "
            f"model's context of {context}",
            "Send a shorter prompt, or lower max_tokens.",
            param="max_tokens" if room > 0 else None,
            code="context_length_exceeded",
        )
    return wanted or min(usual, room)
