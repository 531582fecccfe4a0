"""A dial as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    lm_eval --model pasto --model_args adapter=RUN,coeff=-1 --tasks arc_easy

It is the harness's own Hugging Face model, HFLM, on the base of the dial: batches, caches of
logits, stop words and chat templates are the harness's. Each kind of request runs inside
`dial.at(coeff)`, so that M(a) is computed once for all requests, and coefficient 0 is HFLM on the
base bit for bit.
"""

# The harness is an optional extra.
# pyright: reportMissingImports=false

import logging
from collections.abc import Iterator
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
        coeff: Where the dial stands.
        raw: Take the coefficient as one of training, without the calibrated ends.
        quantization: `none`, `4bit` or `8bit` instead of the one it was trained with.
        device: `cpu`, `mps`, `cuda` or `cuda:N`.
        dial: One that is open already, instead of `adapter` and how to load it.
        hflm: What HFLM takes beside a model and a tokenizer: `batch_size`, `max_length`, ...

    Raises:
        PastoError: If the adapter cannot be opened, or the coefficient is no finite number.
    """

    def __init__(
        self,
        adapter: str | None = None,
        coeff: float = 1.0,
        raw: bool = False,
        quantization: str | None = None,
        device: str | None = None,
        dial: Dial | None = None,
        **hflm: Any,
    ) -> None:
        self.coefficient = _number(coeff)
        # The harness asks for cuda:0 where a user asked for nothing.
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        if dial is None:
            options = LoadOptions(quantization, device, raw=raw)
            dial = open_dial(adapter, Silent(), options, packing=False)
        self.dial = dial
        if dial.lm.tokenizer is None:
            dial.lm.chat.text("")  # says what is missing
        with dial.at(self.coefficient):
            pass  # a coefficient that cannot be set is refused before a task is loaded
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
        with self.dial.at(self.coefficient):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log P(text), nats."""
        with self.dial.at(self.coefficient):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop word."""
        with self.dial.at(self.coefficient):
            return super().generate_until(requests, disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: also which dial, and where it stood."""
        return super().get_model_info() | {
            "adapter": str(self.dial.folder),
            "coefficient": self.coefficient,
            "raw_coefficient": self.dial.raw(self.coefficient),
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


def _number(text: Any) -> float:
    try:
        return float(text) + 0.0  # -0 is 0
    except (TypeError, ValueError):
        raise PastoError(
            f"coeff={text!r} is not a number", "Write --model_args adapter=RUN,coeff=-1"
        ) from None
