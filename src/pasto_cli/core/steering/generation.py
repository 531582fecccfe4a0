"""Text from a steered model. M(a) is computed once a call, however many tokens follow."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.steerer import Steerer, lead


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

    Greedy texts run in one batch, each row at its own coefficient. Sampled ones run one by one from
    the same seed, so that a text does not depend on which other coefficients were asked for.

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
    ids = [lm.chat.prompt((lead(steerer, a) or "") + prompt) for a in coefficients]
    if (
        temperature > 0 or len(set(map(len, ids))) > 1 or len(coefficients) == 1
    ):  # rows of one batch are equally long
        return [
            _decode(
                lm,
                steerer,
                [row],
                [a],
                max_new_tokens,
                temperature,
                seed,
                stream if len(coefficients) == 1 else None,
            )[0]
            for row, a in zip(ids, coefficients, strict=True)
        ]
    return _decode(lm, steerer, ids, coefficients, max_new_tokens, temperature, seed, None)


def generate_many(
    lm: LoadedModel,
    steerer: Steerer,
    prompts: Sequence[str],
    coefficients: Sequence[float],
    max_new_tokens: int = 48,
    rows: int = 24,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[str]]:
    """Greedy answers to many prompts at several coefficients.

    Prompts of equal length share a batch, so that no row is padded.

    Args:
        lm: The base model.
        steerer: Sets the coefficients.
        prompts: n user messages.
        coefficients: c of them.
        max_new_tokens: Upper limit.
        rows: Rows of a batch.
        progress: Told how many prompts' worth of answers each batch gave.

    Returns:
        [n][c] texts.
    """
    texts = [[""] * len(coefficients) for _ in prompts]
    tasks = [
        (lm.chat.prompt((lead(steerer, a) or "") + prompt), i, c)
        for i, prompt in enumerate(prompts)
        for c, a in enumerate(coefficients)
    ]
    done = 0
    for _, group in groupby(sorted(tasks, key=lambda t: len(t[0])), key=lambda t: len(t[0])):
        equal = list(group)
        for start in range(0, len(equal), rows):
            batch = equal[start : start + rows]
            found = _decode(
                lm,
                steerer,
                [ids for ids, _, _ in batch],
                [coefficients[c] for *_, c in batch],
                max_new_tokens,
                0.0,
                0,
                None,
            )
            for (_, i, c), text in zip(batch, found, strict=True):
                texts[i][c] = text
            before, done = done, done + len(batch)
            progress(done // len(coefficients) - before // len(coefficients))
    return texts


def _decode(
    lm: LoadedModel,
    steerer: Steerer,
    ids: Sequence[Sequence[int]],
    coefficients: Sequence[float],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stream: Callable[[str], None] | None,
) -> list[str]:
    """One text for each row; rows have the same length."""
    rows = torch.tensor([list(row) for row in ids], device=lm.device)
    arguments: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": lm.tokenizer.pad_token_id
        if lm.tokenizer.pad_token_id is not None
        else lm.tokenizer.eos_token_id,
        **decoding(temperature),
    }
    if stream is not None:
        arguments["streamer"] = _streamer(lm.tokenizer, stream)
    with torch.no_grad(), torch.random.fork_rng(), steerer.at(list(coefficients)):
        torch.manual_seed(seed)
        output = lm.model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), **arguments
        )
    texts = lm.tokenizer.batch_decode(output[:, rows.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def decoding(temperature: float) -> dict[str, Any]:
    """Arguments of `generate` that leave nothing to a checkpoint's own settings (penalties, beams,
    nucleus)."""
    return {
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else None,
        "top_p": None,
        "top_k": None,
        "min_p": None,
        "typical_p": None,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }


def _streamer(tokenizer: Any, receive: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            receive(text + ("\n" if stream_end else ""))

    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
