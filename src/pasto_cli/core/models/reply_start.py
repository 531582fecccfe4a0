r"""Where a reply begins: what a chat template writes between the user's message and an answer.

It is read off renderings, with probe words as messages:

    open        ... USER <|assistant|><think>\n                      the generation prompt
    finished    ... USER <|assistant|>ANSWER                         a turn that is over
    thought     ... USER <|assistant|><think>\nTHOUGHT\n</think>\n\nANSWER

What the generation prompt has beyond a finished turn is a thought, or a channel, that the model
would write first. Openings of replies, questions and prefills stand after it: the thought is
switched off where an argument of the template does that; closed as the template closes it (between
THOUGHT and ANSWER), or replaced by what stands before ANSWER in a finished turn; or closed by the
bracket that answers the one that opened it. What none of these closes is refused.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pasto_cli.base.errors import PastoError

Render = Callable[..., str]
"""Renders messages; `add_generation_prompt` and the template's own arguments by name."""

USER, ANSWER, THOUGHT = "quokkaquestion", "quokkaanswer", "quokkathought"
"""Words that no template writes by itself."""
# What transformers gives to every template.
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception"})
# A name in brackets, as thoughts, channels and special tokens are written.
TAG = re.compile(r"(<\|?|\[|◁)(/?)([A-Za-z][\w:.-]*)(\|?>|\]|▷)")
CLOSES = (("START", "END"), ("BEGIN", "END"), ("start", "end"), ("begin", "end"))
# Only where a template shows no turn to compare with.
OF_THOUGHTS = re.compile(r"think|thought|reason|analysis|reflect|scratch", re.IGNORECASE)


# Hybrid reasoning templates write a thought unless told not to; others ignore the argument.
ALWAYS: Mapping[str, Any] = MappingProxyType({"enable_thinking": False})

Thought = Literal["none", "empty", "channel", "opened"]


class ReplyStart(NamedTuple):
    """How prompts of a template end, so that a reply can follow."""

    arguments: Mapping[str, Any]
    """What the template is given."""
    parts: bool
    """Whether it takes the content of a message as a list of parts."""
    prompt: str
    """The generation prompt, as the template writes it."""
    ready: str
    """What stands in its place, open for the reply."""
    thought: Thought
    """What the template puts before a reply: nothing, an empty thought, a channel of its own (or
    another header), or a thought that it leaves open."""

    def complete(self, text: str) -> str:
        """A rendered text that ends in the generation prompt, which may be empty, made ready."""
        if not text.endswith(self.prompt):  # another turn's end: nothing is known of it
            return text
        return text[: len(text) - len(self.prompt)] + self.ready

    @property
    def note(self) -> str | None:
        """What is to be said of it; None where a reply follows the header of its turn."""
        if self.thought == "none":
            return None
        what = {
            "empty": "replies stand after an empty thought",
            "channel": "replies stand where the chat template puts those of finished turns",
            "opened": "the chat template opens a thought before replies: it is closed, empty",
        }[self.thought]
        return f"{what}; prompts end in {self.ready[-60:]!r}"


class _Seen(NamedTuple):
    """What a template was seen to write after the user's message."""

    tail: str
    """Up to the reply, in a generation prompt."""
    prompt: str
    """The part of it that `add_generation_prompt` adds."""
    finished: str | None
    """Up to the answer of a finished turn; None where the template shows none."""
    opener: str | None
    """Up to a thought; None where the template shows none."""
    closer: str
    """Between a thought and the answer."""


def find_reply_start(source: str, render: Render, knows: Callable[[str], bool]) -> ReplyStart:
    """Look at what a template renders.

    Args:
        source: The template.
        render: Renders with it.
        knows: Whether a text is a token of its own, or stands in the template.

    Raises:
        PastoError: If the template does not show the user's message, or opens a thought that
            cannot be closed.
        Exception: Whatever jinja or the template raise.
    """
    parts = _takes_parts(render)
    seen = _look(render, parts, ALWAYS)
    found = _start(seen, knows)
    if found is None or found[1] == "opened":
        for name in _own_arguments(source):  # a switch is better than a closed thought
            with suppress(Exception):
                given = {**ALWAYS, name: False}
                other = _look(render, parts, given)
                switched = _start(other, knows)
                if switched is not None and switched[1] != "opened":
                    return ReplyStart(given, parts, other.prompt, *switched)
    if found is None:
        raise PastoError(
            f"the model's chat template opens a thought before each reply and shows no way to "
            f"close it: prompts end in {seen.tail[-80:]!r}",
            "Use a model that answers without one, or mend its chat template.",
        )
    return ReplyStart(ALWAYS, parts, seen.prompt, *found)


def as_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with each text as a list of one part."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m.get("content"), str)
        else dict(m)
        for m in messages
    ]


def _takes_parts(render: Render) -> bool:
    """Whether a template shows the text of a message only where it is a list of parts."""
    plain = [{"role": "user", "content": USER}]
    failure: Exception | None = None
    shown = ""
    for messages in (plain, as_parts(plain)):
        try:
            text = render(messages, add_generation_prompt=True)
        except Exception as error:
            failure = failure or error
            continue
        if USER in text:
            return messages is not plain
        shown = shown or text
    if failure is not None:
        raise failure
    what = f"it renders {shown[:60]!r}" if shown.strip() else "it renders nothing"
    raise PastoError(
        f"the model's chat template does not show the user's message: {what}",
        "Mend the chat template of the model, or use the one of its publisher.",
    )


def _look(render: Render, parts: bool, arguments: Mapping[str, Any]) -> _Seen:
    """What a template writes around probe words."""

    def rendered(answer: Mapping[str, str] | None, prompt: bool) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": USER}]
        if answer is not None:
            messages.append({"role": "assistant", "content": ANSWER, **answer})
        shown = as_parts(messages) if parts else messages
        text = render(shown, add_generation_prompt=prompt, **arguments)
        return text[text.rindex(USER) + len(USER) :]

    tail = rendered(None, prompt=True)
    prompt, finished, opener, closer = tail, None, None, ""
    with suppress(Exception):  # some refuse a conversation that ends here or there
        without = rendered(None, prompt=False)
        prompt = tail.removeprefix(without)
    with suppress(Exception):
        text = rendered({}, prompt=False)
        finished = text[: text.index(ANSWER)]
    with suppress(Exception):
        # Each template knows one of these names; the others are passed over.
        names = ("reasoning_content", "reasoning", "thinking")
        text = rendered(dict.fromkeys(names, THOUGHT), prompt=False)
        first, answer = text.index(THOUGHT), text.index(ANSWER)
        if first < answer:
            opener, closer = text[:first], text[text.rindex(THOUGHT) + len(THOUGHT) : answer]
    return _Seen(tail, prompt, finished, opener, closer)


def _start(seen: _Seen, knows: Callable[[str], bool]) -> tuple[str, Thought] | None:
    """(what is to stand in place of the generation prompt, the thought before a reply).

    None where a thought is opened that nothing closes.
    """
    tail, finished = seen.tail, seen.finished
    if not tail.endswith(seen.prompt):
        return seen.prompt, "none"
    before = tail[: len(tail) - len(seen.prompt)]
    if finished is None or finished.strip() == tail.strip():
        unclosed, pairs = _unclosed(tail)
        named = [tag for tag in unclosed if OF_THOUGHTS.search(tag)]
        if not named:
            return seen.prompt, "empty" if pairs else "none"
        return _closed_by_brackets(seen, named, knows)
    common = len(os.path.commonprefix([tail, finished]))
    mine, theirs = tail[common:], finished[common:]
    if not mine.strip():  # a finished turn goes on: a channel, a closed thought
        ready = finished if finished.startswith(before) else tail + theirs
        if not theirs.strip():
            return seen.prompt, "none"
        return ready.removeprefix(before), "opened" if _unclosed(finished)[1] else "channel"
    if seen.opener is not None and seen.closer.strip():
        if seen.closer.strip() in mine:
            return seen.prompt, "empty"
        if seen.opener.strip().startswith(tail.strip()):
            rest = seen.opener[len(tail) :] if seen.opener.startswith(tail) else ""
            return seen.prompt + rest + seen.closer, "opened"
    unclosed, pairs = _unclosed(mine)
    if not unclosed:  # words, or a thought that is closed
        return seen.prompt, "empty" if pairs else "none"
    if theirs.strip() and finished.startswith(before):  # another channel than that of answers
        return finished.removeprefix(before), "opened"
    return _closed_by_brackets(seen, unclosed, knows)


def _closed_by_brackets(
    seen: _Seen, unclosed: Sequence[str], knows: Callable[[str], bool]
) -> tuple[str, Thought] | None:
    """The generation prompt with what it leaves open closed by the bracket of the same name."""
    closings = []
    for tag in reversed(unclosed):
        left, _, name, right = TAG.fullmatch(tag).groups()  # type: ignore[union-attr]
        own = f"{left}/{name}{right}"
        if left == "<|":  # a token: it has to be one that the model knows
            others = (
                [f"<{name}|>"] if right == ">" else [own, f"<|end_{name}|>", f"<|end_of_{name}|>"]
            )
            others += [
                f"{left}{name.replace(start, end)}{right}" for start, end in CLOSES if start in name
            ]
            own = next((x for x in others if knows(x)), None)
        if own is None:
            return None
        closings.append(own)
    # As Qwen's templates write it where a thought stands on lines of its own.
    lines = ("\n", "\n\n") if seen.prompt.endswith("\n") else ("", "")
    return seen.prompt + lines[0] + "".join(closings) + lines[1], "opened"


def _unclosed(text: str) -> tuple[list[str], int]:
    """Tags that are opened and not closed in a text, and the number of pairs."""
    stack: list[tuple[str, str]] = []
    pairs = 0
    for tag in TAG.finditer(text):
        left, slash, name, right = tag.groups()
        closes = slash or (left == "<" and right == "|>")
        for start, end in CLOSES:
            if any(name.replace(end, start) == other for other, _ in stack) and end in name:
                closes, name = "/", name.replace(end, start)
        if closes:
            inside = [other for other, _ in stack]
            if name in inside:
                del stack[len(inside) - 1 - inside[::-1].index(name) :]
                pairs += 1
        else:
            stack.append((name, tag.group()))
    return [tag for _, tag in stack], pairs


def _own_arguments(source: str) -> list[str]:
    """Names that a template reads and transformers does not give to every template."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    # `generation` blocks are transformers' own; they hold no names.
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError:
        return []
    return sorted(meta.find_undeclared_variables(tree) - GIVEN)
