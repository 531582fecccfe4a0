"""Requests in OpenAI's form, and what they ask of an engine.

Fields of the API reference that change a text and are not offered are refused, not ignored: a
client that sends penalties wants them. Fields that only describe (`user`, `metadata`) are ignored.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from pasto_cli.base.limits import MOST
from pasto_cli.core.serving.engine import Message, Prompt, Refusal, Request, Sampling

MOST_CHOICES = 16
"""Answers to one prompt, and prompts of one request."""
NOT_OFFERED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Field -> values that change nothing."""

MOST_STOPS = 16
StopText = Annotated[str, Field(max_length=256)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _listed(stop: object) -> object:
    """One stop text as a list of one."""
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False


class _Body(BaseModel):
    """What both kinds of request have."""

    model: str | None = None
    dial: Any = None
    """Dial -> coefficient; `positions` reads it."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    temperature: Number = Field(default=1.0, ge=0.0, le=2.0)
    top_p: Number = Field(default=1.0, ge=0.0, le=1.0)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST)
    seed: int | None = None
    stop: Annotated[list[StopText], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = []

    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """Prompts, each of which gets n answers."""

    def longest(self) -> int | None:
        """Tokens of an answer."""
        return self.max_tokens

    @abstractmethod
    def alternatives(self) -> int | None:
        """Number of alternatives told with each token; None where none is told of any."""

    def requests(self) -> list[Request]:
        """Several for each prompt, in the order of the choices of the reply."""
        return [
            Request(
                prompt,
                Sampling(
                    self.longest(),
                    self.temperature,
                    self.top_p,
                    # From one seed all answers would be the same.
                    None if self.seed is None else self.seed + index,
                    self.stop,
                    self.alternatives(),
                ),
            )
            for prompt in self.prompts()
            for index in range(self.n)
        ]


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


def _parts(content: object) -> object:
    """A message's content as a list of parts."""
    if content is None:  # an assistant's turn may have none
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)] = []

    def plain(self) -> Message:
        """As templates know it."""
        text = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatBody(_Body):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    def prompts(self) -> list[Prompt]:
        """The one conversation."""
        return [[message.plain() for message in self.messages]]

    def longest(self) -> int | None:
        """The newer name of the field comes first."""
        return self.max_completion_tokens or self.max_tokens

    def alternatives(self) -> int | None:
        """See `_Body.alternatives`."""
        return self.top_logprobs if self.logprobs else None


class CompletionBody(_Body):
    """Body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(default=16, ge=1, le=MOST)
    logprobs: int | None = Field(default=None, ge=0, le=5)

    def prompts(self) -> list[Prompt]:
        """Texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        several = [part for part in self.prompt if not isinstance(part, int)]
        return [*several] or [ids]

    def alternatives(self) -> int | None:
        """See `_Body.alternatives`."""
        return self.logprobs


Body = TypeVar("Body", ChatBody, CompletionBody)


def read_body(kind: type[Body], sent: object) -> Body:
    """A request's JSON as a typed record.

    Raises:
        Refusal: With the field that is wrong.
    """
    if not isinstance(sent, dict):
        raise Refusal("the body is not a JSON object", 'Send {"model": ..., ...}.')
    # Many clients send null for what they leave to the server.
    fields = {name: value for name, value in sent.items() if value is not None}
    for name, neutral in NOT_OFFERED.items():
        if name in fields and fields[name] not in neutral:
            raise Refusal(
                f"{name} is not offered here", "Leave it out.", param=name, code="unsupported"
            )
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        # Pydantic adds the type that it tried last, where a field may have several.
        field = ".".join(
            str(part) for part in first["loc"] if part != "str" and "[" not in str(part)
        )
        raise Refusal(
            f"{field}: {first['msg']}",
            "The fields are those of OpenAI's API reference.",
            param=field,
        ) from None
    if len(body.prompts()) > MOST_CHOICES:
        raise Refusal(
            f"{len(body.prompts())} prompts in one request, at most {MOST_CHOICES} are taken",
            "Send several requests; they share batches.",
            param="prompt",
        )
    return body
