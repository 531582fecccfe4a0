"""One rendering of chats everywhere: pairs, neutral prompts, benchmark items and generation.

A prompt is a user message (and a system message only if the recipe sets one), rendered by the
model's own chat template up to where the reply begins: after its thought, where the template writes
one (`reply_start`). A rendered text that starts with what the tokenizer puts in front of texts is
tokenised without special tokens, so no prompt has two BOS.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.reply_start import ALWAYS, ReplyStart, as_parts, find_reply_start
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


class Limits(NamedTuple):
    """What a model takes."""

    rows: int
    """Tokens that its embedding knows."""
    positions: int | None
    """Longest text, tokens; None where it has no limit."""


class Chat:
    """Renders and tokenises prompts for one tokenizer.

    Args:
        tokenizer: A transformers tokenizer; one without a chat template gets `PLAIN_TEMPLATE`.
        system: System message of every prompt, or None for none.
        limits: Of the model that the prompts are for; None checks nothing.
    """

    def __init__(
        self, tokenizer: Any, system: str | None = None, limits: Limits | None = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        self.system = system
        self.limits = limits
        self._starts: dict[str, ReplyStart] = {}

    @property
    def start(self) -> ReplyStart:
        """How prompts end, so that a reply can follow; see `reply_start`.

        Raises:
            PastoError: If no reply can.
        """
        source = self.tokenizer.get_chat_template()
        if source not in self._starts:
            self._starts[source] = self._find_start(source)
        return self._starts[source]

    def _find_start(self, source: str) -> ReplyStart:
        def knows(text: str) -> bool:
            return text in source or text in self.tokenizer.get_added_vocab()

        def bare(messages: Any, **arguments: Any) -> str:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **arguments)

        def with_system(messages: Any, **arguments: Any) -> str:
            return bare([*self._system(messages), *messages], **arguments)

        found = find_reply_start(source, with_system, knows)
        if self.system is None:
            return found
        try:
            plain = find_reply_start(source, bare, knows).thought
        except Exception:  # some templates want a system message
            return found
        opens = found.thought == "opened" and plain != "opened"
        if opens or (found.thought == "none" and plain == "empty"):
            raise PastoError(
                f"model.system switches the model's thinking on: prompts end in "
                f"{found.prompt[-60:]!r}",
                "Answers are measured where a reply begins: remove that from model.system.",
            )
        return found

    def _system(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The system message of every prompt, unless a conversation has its own."""
        if self.system is None or any(message["role"] == "system" for message in messages):
            return []
        return [{"role": "system", "content": self.system}]

    def text(self, user: str) -> str:
        """The rendered prompt up to where the reply begins.

        Raises:
            PastoError: If the template does not render it.
        """
        try:
            found = self.render([{"role": "user", "content": user}])
        except PastoError:
            raise
        except Exception as error:  # jinja raises its own errors, and templates raise through it
            raise PastoError(
                f"the model's chat template failed: {error}", self._cure(user)
            ) from None
        if not found:
            raise PastoError(
                "the model's chat template renders nothing",
                "Use a model whose template takes a user's message as text.",
            )
        return found

    def _cure(self, user: str) -> str:
        """What to do about a template that failed."""
        if self.system is not None:
            with suppress(Exception):
                messages = [{"role": "user", "content": user}]
                self.tokenizer.apply_chat_template(messages, tokenize=False)
                return "Remove model.system from the recipe: the template takes none."
        return (
            "Mend the chat template of the model (chat_template.jinja or tokenizer_config.json), "
            "or use its publisher's."
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation up to where the assistant's next reply begins.

        The system message of every prompt stands first, unless the conversation has its own.

        Args:
            messages: `role` and `content` of each.

        Raises:
            PastoError: If a reply can begin nowhere; see `start`.
            Exception: Whatever jinja or the template raise.
        """
        whole: list[Any] = [*self._system(messages), *messages]
        text, failure = "", None
        try:
            text = self._applied(whole, ALWAYS)
        except Exception as error:  # what a template refuses, it refuses in its own words
            failure = error
        try:
            start = self.start
        except Exception as error:
            raise (failure or error) from None
        if start.parts or start.arguments != ALWAYS:
            text = self._applied(as_parts(whole) if start.parts else whole, start.arguments)
        elif failure is not None:
            raise failure
        return start.complete(text)

    def _applied(self, messages: Sequence[Any], arguments: Mapping[str, Any]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text.

        Templates of Gemma and Llama 3 write the BOS that their tokenizers would add once more,
        others after a line break, or with tokens that are no BOS ([gMASK]<sop>): what the tokenizer
        would put in front is left out where the text begins with it.

        Raises:
            PastoError: If the model lacks a token, or takes no text of that length.
        """
        ids = list(self.tokenizer(text)["input_ids"])
        if not self._adds_tokens:
            return self._checked(ids)
        bare = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ahead = self._put_in_front(ids, bare)
        if ahead and self._begins_with(bare, ahead):
            ids = bare
        return self._checked(ids)

    @cached_property
    def _adds_tokens(self) -> bool:
        """Whether the tokenizer puts tokens of its own around a text."""
        return bool(self.tokenizer("")["input_ids"])

    def _put_in_front(self, ids: list[int], bare: list[int]) -> list[int]:
        """What a tokenizer adds before a text."""
        for n in range(1, len(ids) - len(bare) + 1):
            if ids[n : n + len(bare)] == bare:
                return ids[:n]
        return []

    def _begins_with(self, ids: list[int], ahead: list[int]) -> bool:
        """Whether ids begin with some others, white space aside."""
        for start in range(len(ids) - len(ahead) + 1):
            if ids[start : start + len(ahead)] == ahead:
                return True
            if self.tokenizer.decode(ids[start]).strip():
                return False
        return False

    def _checked(self, ids: list[int]) -> list[int]:
        """Ids that the model takes.

        Raises:
            PastoError: For tokens that it lacks, and more of them than it has positions for.
        """
        if self.limits is None or not ids:
            return ids
        rows, positions = self.limits
        if max(ids) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise PastoError(
                f"the tokenizer has token {max(ids)} ({token!r}), the model's embedding "
                f"{rows} rows",
                "The tokenizer does not belong to these weights: use the one they came with.",
            )
        if positions is not None and len(ids) > positions:
            raise PastoError(
                f"a prompt of {len(ids)} tokens is too long: the model has {positions} positions",
                f"Shorten what begins {self.tokenizer.decode(ids)[:60]!r}, or use another model.",
            )
        return ids

    def room(self, prompt: int, wanted: int) -> int:
        """Number of tokens, at most `wanted`, that fit after a prompt of so many tokens."""
        if self.limits is None or self.limits.positions is None:
            return wanted
        return max(1, min(wanted, self.limits.positions - prompt))

    def prompt(self, user: str) -> list[int]:
        """Token ids of a prompt that ends where the reply begins."""
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
        return self._checked(list(self.tokenizer(more, add_special_tokens=False)["input_ids"]))


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
