"""Text from a steered model.

A steerer computes M(a) once on entering its context, so that it costs one solve per call, however
many tokens follow. Many greedy texts grow on token trees (`tree_answers`). Otherwise rows of one
batch are equally long: padding on the left would need masks that some architectures round
differently with, and a text must not depend on its neighbours.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessorList

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import require_coefficients, require_seed, require_temperature
from pasto_cli.base.text import half_character
from pasto_cli.core.models import distributed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.overflow import TrueLogits
from pasto_cli.core.steering.steerer import Steerer
from pasto_cli.core.steering.tree_answers import tree_answers, trees_of

SAMPLED_TOGETHER = 24
"""Rows of a batch of sampled answers."""


class Decoding(NamedTuple):
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Seed of sampling."""


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
        coefficients: Numbers from -1000 to 1000.
        max_new_tokens: Upper limit.
        temperature: 0 is greedy.
        seed: Seed of sampling.
        stream: Receives pieces of text as they come; for one coefficient.

    Returns:
        Texts without special tokens, in the order of the coefficients.

    Raises:
        PastoError: For a temperature, seed, coefficient or number of tokens out of range, or a
            coefficient at which states overflow.
    """
    require_seed(seed)
    require_coefficients(coefficients, "coefficients")
    if max_new_tokens < 1:
        raise PastoError(f"an answer of {max_new_tokens} tokens is none", "Ask for 1 or more.")
    if not coefficients:
        return []
    how = Decoding(max_new_tokens, temperature, seed)
    rows = [_prompt(lm, steerer, prompt, a) for a in coefficients]
    if len(coefficients) == 1:
        return _decode(lm, steerer, rows, coefficients, how, stream)
    # A steerer that works by words gives rows of unlike length.
    if temperature > 0 or len(set(map(len, rows))) > 1:
        return [
            _decode(lm, steerer, [row], [a], how)[0]
            for row, a in zip(rows, coefficients, strict=True)
        ]
    return _decode(lm, steerer, rows, coefficients, how)


def generate_many(
    lm: LoadedModel,
    steerer: Steerer,
    prompts: Sequence[str],
    coefficients: Sequence[float],
    max_new_tokens: int = 48,
    rows: int = 24,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[str]]:
    """Greedy answers to many prompts at several coefficients; processes share the batches.

    Args:
        lm: The base model.
        steerer: Sets the coefficients.
        prompts: n user messages.
        coefficients: c of them.
        max_new_tokens: Upper limit.
        rows: Number of rows of a batch where the model takes no trees.
        progress: Told how many prompts' worth of answers each batch gave.

    Returns:
        [n][c] texts.
    """
    count, done = len(coefficients), 0
    ids = [_prompt(lm, steerer, prompt, a) for prompt in prompts for a in coefficients]

    def answer(batch: list[int]) -> dict[int, str]:
        own = [ids[i] for i in batch]
        if lm.trees:  # all of one coefficient
            found = _on_trees(lm, own, max_new_tokens, steerer, coefficients[batch[0] % count])
        else:
            at = [coefficients[i % count] for i in batch]
            found = _decode(lm, steerer, own, at, Decoding(max_new_tokens))
        return dict(zip(batch, found, strict=True))

    def answered(texts: int) -> None:
        nonlocal done
        before, done = done, done + texts
        # Rounded down on both sides, so that the steps add up to the number of prompts.
        progress(done // count - before // count)

    groups = _trees_of(ids, count) if lm.trees else _equally_long(ids, rows)
    texts = distributed.map_groups(groups, answer, answered)
    return [[texts[n * count + c] for c in range(count)] for n in range(len(prompts))]


def _trees_of(ids: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Rows of a tree each, as indices, where every `count`th row has the same coefficient."""
    return [
        [i * count + c for i in group] for c in range(count) for group in trees_of(ids[c::count])
    ]


def _on_trees(
    lm: LoadedModel,
    rows: Sequence[Sequence[int]],
    tokens: int,
    steerer: Steerer,
    coefficient: float,
) -> list[str]:
    """One greedy text for each row."""
    lengths = [lm.chat.room(len(row), tokens) for row in rows]
    found = tree_answers(
        lm, rows, lengths, end_tokens(lm), steerer=steerer, coefficient=coefficient
    )
    texts = lm.tokenizer.batch_decode(found, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _equally_long(ids: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Batches of at most `rows` prompts of one length, as indices."""

    def length(i: int) -> int:
        return len(ids[i])

    groups = [list(group) for _, group in groupby(sorted(range(len(ids)), key=length), key=length)]
    return [alike[at : at + rows] for alike in groups for at in range(0, len(alike), rows)]


def _prompt(lm: LoadedModel, steerer: Steerer, prompt: str, coefficient: float) -> list[int]:
    """Token ids of a user's message, with the words that a steerer puts before it."""
    if half := half_character(prompt):  # tokenizers of a fast kind raise errors of their own
        raise PastoError(f"the prompt holds {half}, half a character", "Write it in UTF-8.")
    return lm.chat.prompt((steerer.prompt_prefix(coefficient) or "") + prompt)


def _decode(
    lm: LoadedModel,
    steerer: Steerer,
    rows: Sequence[Sequence[int]],
    coefficients: Sequence[float],
    how: Decoding,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """One text for each row; rows have the same length."""
    ids = torch.tensor([list(row) for row in rows], device=lm.device)  # (b, t)
    pad, eos = lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id
    arguments: dict[str, Any] = {
        "max_new_tokens": lm.chat.room(len(rows[0]), how.max_new_tokens),
        "pad_token_id": eos if pad is None else pad,
        "logits_processor": LogitsProcessorList([TrueLogits(coefficients)]),
        **decoding(how.temperature),
    }
    if stream is not None:
        arguments["streamer"] = _streamer(lm.tokenizer, stream)
    # fork_rng: sampling from a seed of its own leaves the caller's random numbers as they were.
    with torch.no_grad(), torch.random.fork_rng(), steerer.at(list(coefficients)):
        torch.manual_seed(how.seed)
        output = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
    texts = lm.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def greedy_answers(
    lm: LoadedModel,
    rows: list[list[int]],
    tokens: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """The clean model's greedy answer to each row, token ids, with the token that ends it.

    Args:
        lm: The base model.
        rows: Token ids of prompts.
        tokens: Longest answer.
        progress: Told how many answers each batch gave.
    """
    if lm.trees:
        lengths = [lm.chat.room(len(row), tokens) for row in rows]
        return tree_answers(lm, rows, lengths, _ends(lm), progress)
    answers: list[list[int]] = [[] for _ in rows]
    # Rows of equal length share a batch, so that none is padded: padding would change rounding.
    for length in sorted({len(row) for row in rows}):
        alike = [i for i, row in enumerate(rows) if len(row) == length]
        found = _answers(lm, [rows[i] for i in alike], Decoding(tokens))
        for index, answer in zip(alike, found, strict=True):
            answers[index] = answer
        progress(len(alike))
    return answers


def sampled_answers(
    lm: LoadedModel,
    rows: Sequence[Sequence[int]],
    how: Decoding,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """The clean model's sampled answer to each row, token ids, with the token that ends it.

    All of them come from one seed: the same rows in the same order get the same answers.

    Args:
        lm: The base model.
        rows: Token ids of prompts.
        how: Longest answer, temperature and seed.
        progress: Told how many answers each batch gave.
    """
    answers: list[list[int]] = [[] for _ in rows]
    # fork_rng: the caller's random numbers stay as they were.
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        for batch in _equally_long(rows, SAMPLED_TOGETHER):
            found = _answers(lm, [list(rows[i]) for i in batch], how)
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
            progress(len(batch))
    return answers


@torch.no_grad()
def _answers(lm: LoadedModel, rows: list[list[int]], how: Decoding) -> list[list[int]]:
    """Answers to rows of equal length, each up to and with the token that ends it."""
    ids = torch.tensor(rows, device=lm.device)
    arguments: dict[str, Any] = {
        "max_new_tokens": lm.chat.room(len(rows[0]), how.max_new_tokens),
        **decoding(how.temperature),
        "pad_token_id": lm.tokenizer.eos_token_id,
        "logits_processor": LogitsProcessorList([TrueLogits([0.0] * len(rows))]),
    }
    output = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
    found = output[:, ids.shape[1] :].tolist()
    ends = _ends(lm)
    # A row that ended early was padded until its neighbours had ended.
    return [
        row[: next((n + 1 for n, token in enumerate(row) if token in ends), None)] for row in found
    ]


def _ends(lm: LoadedModel) -> set[int]:
    """Tokens that end an answer."""
    return {lm.tokenizer.eos_token_id, *end_tokens(lm)}


def end_tokens(lm: LoadedModel) -> set[int]:
    """Tokens at which transformers' `generate` ends a text: one, several or none."""
    found = lm.model.generation_config.eos_token_id
    return set() if found is None else set(found if isinstance(found, list) else [found])


def decoding(temperature: float) -> dict[str, Any]:
    """Arguments of transformers' `generate` that leave nothing to a checkpoint's own settings.

    Many chat models ship penalties, beams or a nucleus in generation_config.json, under which texts
    at two coefficients could not be compared.

    Raises:
        PastoError: For a temperature that cannot be sampled at.
    """
    require_temperature(temperature)
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
        "bad_words_ids": None,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "min_new_tokens": None,
        "min_length": 0,
    }


def _streamer(tokenizer: Any, receive: Callable[[str], None]) -> Any:
    """A streamer of transformers, made to hand text to a function instead of printing it."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            receive(text + ("\n" if stream_end else ""))

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
