"""A dial as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    lm_eval --model pasto --model_args adapter=RUN,coeff=-1 --tasks arc_easy

    lm_eval --model pasto --model_args "adapter=RUN,coeff=-1;arc_easy:0.5" --tasks ...

It is the harness's own Hugging Face model, HFLM, on the base of the dial: batches, caches of
logits, stop words and chat templates are the harness's. Requests of one kind and coefficient run
inside one `dial.at(coeff)`, so that M(a) is computed once for all of them, and coefficient 0 is
HFLM on the base bit for bit.
"""

# The harness is an optional extra.
# pyright: reportMissingImports=false

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface

from pasto_cli.base.errors import PastoError
from pasto_cli.workflows.dials import Dial, LoadOptions, open_dial
from pasto_cli.workflows.progress import Silent

HFLM: Any = huggingface.HFLM
"""The class, whose type its decorator hides."""


class PastoLM(HFLM):
    """The base of a dial, steered.

    Args:
        adapter: Run folder, adapter folder or Hub id; None for the latest run.
        coeff: Where the dial stands; for some tasks elsewhere, `-1;arc_easy:0.5;hellaswag:0`.
        raw: Take the coefficient as one of training, without the calibrated ends.
        quantization: `none`, `4bit` or `8bit` instead of the one it was trained with.
        device: `cpu`, `mps`, `cuda` or `cuda:N`.
        dial: One that is open already, instead of `adapter` and how to load it.
        hflm: What HFLM takes beside a model and a tokenizer: `batch_size`, `max_length`, ...

    Raises:
        PastoError: If the adapter cannot be opened, or a coefficient is no finite number.
    """

    def __init__(
        self,
        adapter: str | None = None,
        coeff: float | str = 1.0,
        raw: bool = False,
        quantization: str | None = None,
        device: str | None = None,
        dial: Dial | None = None,
        **hflm: Any,
    ) -> None:
        self.coefficient, self.of_task = _coefficients(coeff)
        # The harness asks for cuda:0 where a user asked for nothing.
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        if dial is None:
            options = LoadOptions(quantization, device, raw=raw)
            dial = open_dial(adapter, Silent(), options, packing=False)
        self.dial = dial
        if dial.lm.tokenizer is None:
            dial.lm.chat.text("")  # says what is missing
        for coefficient in (self.coefficient, *self.of_task.values()):
            with dial.at(coefficient):
                pass  # one that cannot be set is refused before a task is loaded
        with _quiet():
            super().__init__(pretrained=dial.lm.model, tokenizer=dial.lm.tokenizer, **hflm)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "PastoLM":
        """As the harness makes it; what --model_args says goes before --device and its like."""
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        return cls(**(given | arg_dict))

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log P(continuation | context), nats, and whether it is the greedy one."""
        return self._steered(super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log P(text), nats."""
        return self._steered(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop word."""
        return self._steered(super().generate_until, requests, disable_tqdm)

    def _steered(
        self,
        answer: Callable[[list[Instance], bool], list[Any]],
        requests: list[Instance],
        quiet: bool,
    ) -> list[Any]:
        """Answers in the order of the requests, each at the coefficient of its task."""
        groups: dict[float, list[int]] = {}
        for index, request in enumerate(requests):
            wanted = self.of_task.get(request.task_name or "", self.coefficient)
            groups.setdefault(wanted, []).append(index)
        found: list[Any] = [None] * len(requests)
        for coefficient, indexes in groups.items():
            with self.dial.at(coefficient):
                answers = answer([requests[i] for i in indexes], quiet)
            for index, one in zip(indexes, answers, strict=True):
                found[index] = one
        return found

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: also which dial, and where it stood."""
        return super().get_model_info() | {
            "adapter": str(self.dial.folder),
            "coefficient": self.coefficient,
            "raw_coefficient": self.dial.raw(self.coefficient),
            "coefficient_of_task": self.of_task,
            "base": self.dial.meta.base.spec.source,
            "quantization": self.dial.lm.spec.quantization,
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of HFLM: that it was handed a model is meant."""
    logger = logging.getLogger(huggingface.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _coefficients(text: Any) -> tuple[float, dict[str, float]]:
    """(coefficient, task -> another one) of `-1` or `-1;arc_easy:0.5`; 1 where none is given."""
    whole, of_task = 1.0, {}
    for part in str(text).split(";"):
        task, colon, number = part.rpartition(":")
        if colon:
            of_task[task.strip()] = _number(number)
        else:
            whole = _number(number)
    return whole, of_task


def _number(text: Any) -> float:
    try:
        return float(text) + 0.0  # -0 is 0
    except (TypeError, ValueError):
        raise PastoError(
            f"coeff: {text!r} is not a number",
            "Write --model_args adapter=RUN,coeff=-1, or coeff=-1;TASK:0.5 for a task of its own.",
        ) from None
