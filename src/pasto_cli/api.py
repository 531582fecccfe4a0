"""The Python interface: load an adapter, hold its dial.

model, tokenizer, dial = pasto_cli.load("user/gemma-3-1b-honesty")
with dial.at(-1.0):
    model.generate(...)
for coeff, text in dial.generate("Should I tell my boss?", coeffs=[-1, 0, 1]):
    print(coeff, text)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.steering.coefficients import Coefficients
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.steerer import steer
from pasto_cli.workflows.dials import Opened, open_dial
from pasto_cli.workflows.progress import Silent

__all__ = ["Dial", "load", "steer"]


class Dial:
    """An adapter on its model. Outside `at` the model is its untouched base."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @property
    def meta(self) -> Meta:
        """pasto.json of the adapter: base, recipe, certificate."""
        return self._opened.meta

    def at(self, coefficients: Coefficients, bake: bool = False) -> AbstractContextManager[None]:
        """Steer the model inside this context.

        Args:
            coefficients: One number for every row of a batch, or one for each row.
            bake: Fold one coefficient into the weights for the time of this context: decoding then
                costs what the base costs.

        Raises:
            PastoError: If they are not finite, not as many as the rows of a batch, or cannot be
                baked.
        """
        return steer(self._opened.lm.model, coefficients, bake)

    def strength(self, percent: float) -> float:
        """The coefficient that a strength between -100 and 100 per cent of the calibrated one means
        (`pasto calibrate`).

        Raises:
            PastoError: Without a calibration, or beyond 100 %.
        """
        return self.meta.coefficient(percent)

    def generate(
        self,
        prompt: str,
        coeffs: Sequence[float] = (-1.0, 0.0, 1.0),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[tuple[float, str]]:
        """Answers to a user's message.

        Args:
            prompt: Rendered by the model's own chat template.
            coeffs: Coefficients.
            max_new_tokens: Longest answer.
            temperature: 0 is greedy.
            seed: Of sampling.

        Yields:
            (coefficient, text), in the order of `coeffs`.
        """
        texts = generate(
            self._opened.lm,
            self._opened.steerer,
            prompt,
            list(coeffs),
            max_new_tokens,
            temperature,
            seed,
        )
        yield from zip(coeffs, texts, strict=True)


def load(
    name: str | Path,
    quantization: str | None = None,
    device: str | None = None,
    verify: bool = True,
    trust_remote_code: bool = False,
) -> tuple[Any, Any, Dial]:
    """Load an adapter and its base model.

    Args:
        name: Run folder, adapter folder or Hub id.
        quantization: `none`, `4bit` or `8bit` instead of the one it was trained with.
        device: `auto`, `cpu`, `mps`, `cuda`.
        verify: Check fingerprints and reference logits.
        trust_remote_code: Run Python code from the base model's repository; an adapter cannot ask
            for it.

    Returns:
        Model, tokenizer and dial; the model is at coefficient 0.

    Raises:
        PastoError: If adapter or base are missing, damaged or do not belong together.
    """
    opened = open_dial(
        str(name), Silent(), quantization, device, verify, trust_remote_code, packing=False
    )
    return opened.lm.model, opened.lm.tokenizer, Dial(opened)
