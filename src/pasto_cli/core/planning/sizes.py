"""Bytes of every phase of a training, on a device of one kind.

    load            the weights, and what reading them needs
    decomposition   weights, activations, and the largest singular value decomposition
    step            weights, adapter with gradients and moments, kept base sides, one step
    evaluation      weights, adapter, kept base sides, one pass at all coefficients

On a CPU the peak is that of the process. What a step makes and frees in pieces of a few megabytes
is held by the C library's heap in a scattered way, more so the longer a training runs: measured
peaks were 1.1 times the bytes that are alive after two steps, 1.6 to 1.8 after 14 and more (glibc).
"""

import math
from typing import NamedTuple

import torch

from pasto_cli.core.models.configuration import BaseFiles
from pasto_cli.core.models.linears import is_conv1d, is_linear, linear_sizes
from pasto_cli.core.planning.rehearsal import Rehearsal, Stage
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.subspace_expression import parse_subspace
from pasto_cli.core.records.plan import Phase, PhaseName

MIB = 2**20
PROCESS = 490 * MIB
"""Python, torch and transformers as they are loaded in a training, on a CPU."""
HEAP, HEAP_PER_STEP, HEAP_AT_MOST = 1.1, 0.04, 1.6
"""What the heap of a process takes over the bytes that are alive, and how that grows; see above."""
CONTEXT = 600 * MIB
"""Memory of a GPU that the driver and the allocator keep for themselves."""
FILE = 5 * 10**9
"""Bytes of the files that large checkpoints are cut into."""
COPIES = 6
"""Of the trained numbers: weights, gradients, two moments, the best and the last good weights."""
F32 = 4


class Kind(NamedTuple):
    """What matters of a device."""

    device: str
    """cpu, cuda or mps."""
    dtype: torch.dtype
    """Of the weights."""
    low: bool
    """Whether the layers of a float32 model run in bfloat16."""


class Needs(NamedTuple):
    """What phases are made up of, bytes."""

    weights: int
    adapter: int
    kept: int
    """Kept base sides, of pairs, anchors and answers."""
    process: int
    heap: float


def phases(
    kind: Kind,
    recipe: Recipe,
    stage: Stage,
    files: BaseFiles,
    run: Rehearsal,
    *,
    pairs: int,
    steps: int,
) -> list[Phase]:
    """Every phase of a training and of the evaluation after it.

    Args:
        kind: Kind of device.
        recipe: The recipe.
        stage: Base and adapter.
        files: For how the weights are stored.
        run: What a step and an evaluation hold.
        pairs: Those whose base sides are kept, training and validation.
        steps: Optimiser steps of the training.
    """
    host = kind.device != "cuda"  # the memory of an mps device is the machine's own
    cache = min(recipe.training.base_cache_mb * MIB, pairs * run.pair)
    needs = Needs(
        weights=weight_bytes(stage, recipe.model.quantization),
        adapter=stage.file_bytes,
        kept=round(cache) + run.answers,
        process=PROCESS if host else 0,
        heap=min(HEAP + HEAP_PER_STEP * steps, HEAP_AT_MOST) if host else 1.0,
    )
    weights = needs.weights
    if kind.low:  # held in float32, though the stage stands for the bfloat16 that layers run in
        weights *= 2
    common = {"process": needs.process, "weights": weights}
    step = round(needs.heap * run.step) + _casts(kind, recipe, stage)
    evaluation = round(needs.heap * run.evaluation) + _casts(kind, recipe, stage)
    of: dict[PhaseName, dict[str, int]] = {
        "load": common | {"reading": _reading(kind, stage, files, weights)},
        "decomposition": common
        | {
            "activations": _activations(recipe, stage),
            "decomposition": _decomposition(kind, recipe, stage),
            "adapter": needs.adapter,
        },
        "step": common
        | {
            "adapter": needs.adapter + (COPIES - 1) * stage.trained_bytes,
            "kept base sides": needs.kept,
            "step": step,
        },
        "evaluation": common
        | {
            "adapter": needs.adapter,
            "kept base sides": needs.kept,
            "evaluation": evaluation,
        },
    }
    return [Phase(name=n, bytes=sum(parts.values()), of=parts) for n, parts in of.items()]


def weight_bytes(stage: Stage, quantization: str) -> int:
    """Bytes of the base's weights; of a quantised one the linear modules of the layers are packed.

    4bit: half a byte and a float32 scale for 64 numbers. 8bit: a byte, and a scale per row.
    """
    model = stage.lm.model
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    if quantization == "none":
        return total
    for module in stage.lm.layers.modules():
        if is_linear(module):
            count = math.prod(linear_sizes(module))
            packed = count * (1 if quantization == "8bit" else 0.5 + F32 / 64)
            total -= count * stage.lm.dtype.itemsize - round(packed)
    return total


def _reading(kind: Kind, stage: Stage, files: BaseFiles, weights: int) -> int:
    """What reading the weights needs beside them, in the memory of the process."""
    if kind.device == "cuda" or files.stored == 0:
        return 0
    if files.dequantise:  # the file, and a weight of it at a time
        largest = max(p.numel() for p in stage.lm.model.parameters())
        return (files.stored or 0) + largest * F32
    numbers = sum(p.numel() for p in stage.lm.model.parameters())
    stored = files.stored or 2 * numbers
    # Weights that are stored as they are used stay mapped. Others are read, then converted; what
    # was read of a large file may be dropped from memory by the system at any time.
    return 0 if abs(stored - weights) < 0.02 * weights else min(stored, FILE)


def _casts(kind: Kind, recipe: Recipe, stage: Stage) -> int:
    """Copies of weights: all of the layers in bfloat16, or what dequantising takes."""
    linear = [m for m in stage.lm.layers.modules() if is_linear(m)]
    if recipe.model.quantization != "none":  # one weight at a time is dequantised
        return max(math.prod(linear_sizes(module)) for module in linear) * kind.dtype.itemsize
    return 2 * sum(math.prod(linear_sizes(m)) for m in linear) if kind.low else 0


def _activations(recipe: Recipe, stage: Stage) -> int:
    """States of the base at the end of both sides of the pairs that directions are chosen by."""
    rows = 2 * recipe.adapter.activation_pairs
    return rows * (len(stage.lm.layers) + 1) * stage.lm.hidden_size * F32


def _decomposition(kind: Kind, recipe: Recipe, stage: Stage) -> int:
    """The largest decomposition of a writer, and what the loss subspace looks at."""
    found = 0
    plain = kind.dtype == torch.float32 and recipe.model.quantization == "none"
    for writer in stage.placed:
        d_in, d_out = linear_sizes(writer.module)
        k = min(d_in, d_out)
        dense = 0 if plain and not is_conv1d(writer.module) else d_in * d_out
        # A copy for LAPACK, U, V twice (it comes transposed), and a workspace of a few k^2.
        found = max(found, dense + d_in * d_out + k * (d_out + 2 * d_in) + 4 * k * k)
    names = {term.name for term in parse_subspace(recipe.subspace.expression)}
    read = 0
    if names & {"suppressed", "logits_read"}:
        read = stage.lm.model.get_output_embeddings().weight.numel()
    return F32 * max(found, read)
