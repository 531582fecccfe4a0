"""The Python interface: load an adapter, hold its dial.

model, tokenizer, dial = pasto_cli.load("user/gemma-3-1b-honesty")
with dial.at(-1.0):
    model.generate(...)
for coeff, text in dial.generate("Should I tell my boss?", coeffs=[-1, 0, 1]):
    print(coeff, text)
"""

from pathlib import Path
from typing import Any

from pasto_cli.core.steering.steerer import steer
from pasto_cli.workflows.dials import Dial, LoadOptions, open_dial
from pasto_cli.workflows.progress import Silent

__all__ = ["Dial", "load", "steer"]


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
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        verify: Check fingerprints and reference logits.
        trust_remote_code: Run Python code from the base model's repository; an adapter cannot ask
            for it.

    Returns:
        Model, tokenizer and dial; the model is at coefficient 0.

    Raises:
        PastoError: If adapter or base are missing, damaged or do not belong together.
    """
    options = LoadOptions(quantization, device, verify, trust_remote_code)
    dial = open_dial(str(name), Silent(), options, packing=False)
    return dial.lm.model, dial.lm.tokenizer, dial
