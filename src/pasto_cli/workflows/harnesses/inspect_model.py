"""A dial as a model of inspect_ai (https://inspect.aisi.org.uk).

    inspect eval arc.py --model pasto/RUN@-1 -M quantization=4bit

A request is rendered by the model's own chat template, and answered greedily unless it asks for a
temperature. Requests run one after the other: a text does not depend on its neighbours.
"""

# The harness is an optional extra.
# pyright: reportMissingImports=false

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import torch
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from pasto_cli.base.errors import PastoError
from pasto_cli.core.steering.generation import decoding
from pasto_cli.workflows.dials import Dial, LoadOptions, open_dial
from pasto_cli.workflows.progress import Silent

LONGEST = 2048
"""Tokens of an answer where neither task nor user sets a limit; inspect_ai's own."""


class _Answer(NamedTuple):
    text: str
    prompt_tokens: int
    tokens: int
    stop: StopReason


class DialAPI(ModelAPI):
    """A dial at one coefficient.

    Args:
        model_name: `RUN@COEFFICIENT`: run folder, adapter folder or Hub id, and where the dial
            stands (1 where that is left out).
        base_url: inspect_ai's; not used.
        api_key: inspect_ai's; not used.
        config: inspect_ai's.
        raw: Take the coefficient as one of training, without the calibrated ends.
        quantization: `none`, `4bit` or `8bit` instead of the one it was trained with.
        device: `cpu`, `mps`, `cuda` or `cuda:N`.

    Raises:
        PastoError: If the adapter cannot be opened, or the coefficient is no finite number.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        raw: bool = False,
        quantization: str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        name, self.coefficient = split(model_name)
        options = LoadOptions(quantization, device, raw=raw)
        self.dial: Dial = open_dial(name, Silent(), options, packing=False)
        with self.dial.at(self.coefficient):
            pass  # a coefficient that cannot be set is refused before a task is loaded
        self._turn = anyio.Lock()

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a conversation.

        Raises:
            PastoError: If tools are asked for, or the chat template refuses the messages.
        """
        if tools:
            raise PastoError(
                "a dial calls no tools", "Serve an exported LoRA (docs/serving.md) for this task."
            )
        prompt = self._prompt(input)
        started = time.monotonic()
        async with self._turn:  # the coefficient is set on the one model that all requests share
            found = await anyio.to_thread.run_sync(self._answer, prompt, config)
        output = ModelOutput.from_content(self.model_name, found.text, found.stop)
        output.usage = ModelUsage(
            input_tokens=found.prompt_tokens,
            output_tokens=found.tokens,
            total_tokens=found.prompt_tokens + found.tokens,
        )
        output.time = time.monotonic() - started
        return output

    def max_connections(self) -> int:
        """Requests at a time."""
        return 1

    def connection_key(self) -> str:
        """What shares that limit: this dial alone."""
        return self.model_name

    def _prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation, up to the opening of the assistant's turn."""
        chat = self.dial.lm.chat
        turns = [{"role": message.role, "content": message.text} for message in messages]
        try:
            text = chat.render(turns)
        except PastoError:
            raise
        except Exception as error:  # jinja raises its own errors, and templates raise through it
            raise PastoError(
                f"the model's chat template failed: {error}", "Give it turns that it takes."
            ) from None
        return chat.encode(text)

    def _answer(self, prompt: list[int], config: GenerateConfig) -> _Answer:
        lm = self.dial.lm
        ids = torch.tensor([prompt], device=lm.device)  # (1, t)
        temperature = config.temperature or 0.0
        limit = config.max_tokens or LONGEST
        arguments: dict[str, Any] = decoding(temperature) | {
            "max_new_tokens": limit,
            "pad_token_id": _first(lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id),
        }
        if temperature:
            arguments |= {"top_p": config.top_p, "top_k": config.top_k}
        if config.stop_seqs:
            arguments |= {"stop_strings": config.stop_seqs, "tokenizer": lm.tokenizer}
        # fork_rng: sampling from a seed of its own leaves the caller's random numbers as they were.
        with torch.no_grad(), torch.random.fork_rng(), self.dial.at(self.coefficient):
            if config.seed is not None:
                torch.manual_seed(config.seed)
            output = lm.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **arguments
            )
        new = output[0, len(prompt) :].tolist()
        text = lm.tokenizer.decode(new, skip_special_tokens=True)
        before_stop = _before(text, config.stop_seqs or ())
        full = len(new) >= limit and before_stop is None
        return _Answer(
            text if before_stop is None else before_stop,
            len(prompt),
            len(new),
            "max_tokens" if full else "stop",
        )


def split(model_name: str) -> tuple[str, float]:
    """`runs/latest@-0.5` -> its adapter and coefficient; 1 for a name without one.

    Raises:
        PastoError: If there is something else than a number behind the last @.
    """
    name, at, number = model_name.rpartition("@")
    if not at:
        return model_name, 1.0
    try:
        return name, float(number) + 0.0  # -0 is 0
    except ValueError:
        raise PastoError(
            f"{model_name}: {number!r} is not a coefficient", "Write pasto/RUN@-0.5"
        ) from None


def _before(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop sequence; None where there is none in it."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else None


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
