"""One rendering of chats everywhere: pairs, neutral prompts, benchmark items and generation.

A prompt is a user message (and a system message only if the recipe sets one), rendered by the
model's own chat template up to the opening of the assistant's turn. A rendered text that starts
with its BOS is tokenised without special tokens, so no prompt has two.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.core.pairs.pairs import MIN_PAIRS, Pair

PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}\n{{ message['content'] "
    "}}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant\n{% endif %}"
)
"""For models without a chat template: '### User', the message, '### Assistant'."""


class TokenPair(NamedTuple):
    """A pair in tokens: three prompts that end in the same `suffix_len` tokens."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    neutral: tuple[int, ...]
    suffix_len: int
    source: str


class Chat:
    """Renders and tokenises prompts for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer; one without a chat template gets `PLAIN_TEMPLATE`.
        system: System message of every prompt, or None for none.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        self.system = system

    def text(self, user: str) -> str:
        """The rendered prompt up to and including the header of the assistant's turn."""
        try:
            found = self.render([{"role": "user", "content": user}])
        except Exception as error:  # jinja raises its own errors, and templates raise through it
            raise PastoError(
                f"the model's chat template failed: {error}",
                "Set or remove model.system in the recipe.",
            ) from None
        if not found:
            raise PastoError(
                "the model's chat template renders nothing",
                "Use a model whose template takes a user's message as text.",
            )
        return found

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation up to and including the header of the assistant's next turn.

        The system message of every prompt stands first, unless the conversation has its own.

        Args:
            messages: `role` and `content` of each.

        Raises:
            Exception: Whatever jinja or the template raise.
        """
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        if any(message["role"] == "system" for message in messages):
            system = []
        # Hybrid reasoning templates open a thinking block unless told not to; others ignore the
        # keyword.
        return self.tokenizer.apply_chat_template(
            [*system, *messages], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text.

        Templates of Gemma and Llama 3 write the BOS that their tokenizers would add once more.
        """
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)
        return list(self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"])

    def prompt(self, user: str) -> list[int]:
        """Token ids of a prompt that ends in the header of the assistant's turn."""
        return self.ids(self.text(user))

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, open for the reply."""
        ids = self.encode(text)
        # A tokenizer that appends EOS would close the turn before the reply.
        closed = len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
        if closed and not text.endswith(str(self.tokenizer.eos_token)):
            return ids[:-1]
        return ids

    def continued(self, user: str, opening: str) -> list[int]:
        """Token ids of a prompt and an opening of the reply; see `continuation`."""
        head = self.prompt(user)
        return head + self.continuation(self.text(user), head, opening)

    def continuation(self, text: str, ids: Sequence[int], more: str) -> list[int]:
        """Token ids of `more` after `text`, whose ids are given.

        Tokenised together, as the model would have written it; apart where a joint token would
        cross the border, since the rows of a pair must keep their prompts' tokens.
        """
        whole = self.encode(text + more)
        if whole[: len(ids)] == list(ids) and len(whole) > len(ids):
            return whole[len(ids) :]
        return list(self.tokenizer(more, add_special_tokens=False)["input_ids"])


def tokenise_pairs(pairs: Sequence[Pair], chat: Chat) -> tuple[list[TokenPair], Counter[str]]:
    """Tokenise pairs and leave out those that this tokenizer spoils.

    Returns:
        The pairs in tokens, and why the others were dropped.
    """
    dropped: Counter[str] = Counter()
    kept = []
    bos = chat.tokenizer.bos_token_id
    for pair in pairs:
        messages = pair.chosen, pair.rejected, pair.neutral
        heads = [chat.prompt(message) for message in messages]
        rows = [chat.continued(message, pair.suffix) for message in messages]
        tails = [row[len(head) :] for head, row in zip(heads, rows, strict=True)]
        if not tails[0]:
            dropped["empty suffix"] += 1
        elif tails[0] != tails[1] or tails[0] != tails[2]:  # gaps are compared token by token
            dropped["the sides do not end in the same tokens"] += 1
        elif bos is not None and any(row[:2] == [bos, bos] for row in rows):
            dropped["two BOS tokens"] += 1
        else:
            chosen, rejected, neutral = map(tuple, rows)
            kept.append(TokenPair(chosen, rejected, neutral, len(tails[0]), pair.source))
    return kept, dropped


def require_pairs(kept: Sequence[TokenPair], dropped: Counter[str]) -> None:
    """Refuse a set too small to split.

    Raises:
        PastoError: With the reasons for which pairs were dropped.
    """
    if len(kept) < MIN_PAIRS:
        each = [f"{n} dropped: {why}" for why, n in dropped.items()]
        reasons = "; ".join(each) or "none was dropped"
        raise PastoError(
            f"{len(kept)} usable pairs, at least {MIN_PAIRS} are needed ({reasons})",
            "Add suffixes or raise pairs.count.",
        )


class NoChat(Chat):
    """A base without a tokenizer: logits can be compared, but nothing can be said."""

    def __init__(self, source: str) -> None:
        self.source = source

    def text(self, user: str) -> str:  # noqa: ARG002
        """Refuse.

        Raises:
            PastoError: Always.
        """
        raise PastoError(
            f"{self.source} has no tokenizer",
            "Put the tokenizer files of the base beside its weights.",
        )

    encode = text  # type: ignore[assignment]
