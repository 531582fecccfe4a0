"""Text from a steered model. M(a) is computed once a call, however many tokens follow."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pasto_cli.core.models import LoadedModel
from pasto_cli.core.steering import Steerer


def generate(
    lm: LoadedModel,
    steerer: Steerer,
    prompt: str,
    coefficients: Sequence[float],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """One text for each coefficient.

    Greedy texts run in one batch, each row at its own coefficient. Sampled ones run one by one from the same seed, so that a
    text does not depend on which other coefficients were asked for.

    Args:
        lm: The base model.
        steerer: Sets the coefficients.
        prompt: The user's message.
        coefficients: Any finite numbers.
        max_new_tokens: Upper limit.
        temperature: 0 is greedy.
        seed: Of sampling.
        stream: Receives pieces of text as they come; for one coefficient.

    Returns:
        Texts without special tokens, in the order of the coefficients.
    """
    ids = torch.tensor([lm.chat.prompt(prompt)], device=lm.device)
    arguments: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.tokenizer.eos_token_id,
        **decoding(temperature),
    }
    if stream is not None and len(coefficients) == 1:
        arguments["streamer"] = _streamer(lm.tokenizer, stream)
    batches = [list(coefficients)] if temperature == 0 else [[a] for a in coefficients]
    texts = []
    for batch in batches:
        rows = ids.expand(len(batch), -1)
        with torch.no_grad(), torch.random.fork_rng(), steerer.at(batch):
            torch.manual_seed(seed)
            output = lm.model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **arguments)
        texts += lm.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def decoding(temperature: float) -> dict[str, Any]:
    """Arguments of `generate` that leave nothing to a checkpoint's own settings (penalties, beams, nucleus)."""
    return {
        "do_sample": temperature > 0, "temperature": temperature if temperature > 0 else None, "top_p": None, "top_k": None,
        "min_p": None, "typical_p": None, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    }  # fmt: skip


def _streamer(tokenizer: Any, receive: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            receive(text + ("\n" if stream_end else ""))

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
