"""What a training step costs as things grow, against the arithmetic that it needs.

    python -m perf.scale [--out docs/scaling.svg] [--json scaling.json]

Random Llama models; pairs, nodes, rank, vocabulary and layers vary one at a time, the rest stays at
the middle of its row. The floor is the number of floating-point operations of the matrix products,
divided by the speed of one large product on the same machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pasto_cli.core.models.chat import Chat, TokenPair
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.models.residual_writers import decoder_layers, find_writers, place_writers
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import AdapterSpec, ModelSpec, SubspaceSpec
from pasto_cli.core.steering.factors import decompose, select_directions
from pasto_cli.core.steering.kinds import create_adapter
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis

MIDDLE = {"pairs": 8, "length": 48, "rank": 64, "vocabulary": 32_000, "layers": 12}
POINTS = {
    "pairs": (2, 4, 8, 16),
    "length": (24, 48, 96, 192),
    "rank": (8, 32, 64, 128),
    "vocabulary": (8_000, 32_000, 128_000, 262_144),
    "layers": (6, 12, 18, 24),
}
LABELS = {
    "pairs": "pairs per step",
    "length": "tokens per prompt",
    "rank": "rank",
    "vocabulary": "vocabulary",
    "layers": "layers",
}
WIDTH, HIDDEN, SUFFIX, BUDGET = 512, 1408, 8, 512


class Point(NamedTuple):
    """One measurement."""

    x: int
    nodes: int
    """Distinct tokens of a step."""
    seconds: float
    """Median of a step: loss and gradients."""
    operations: float
    """Floating-point operations of its matrix products."""


def pairs_of(count: int, length: int) -> list[TokenPair]:
    """Pairs whose prompts share a third of their tokens and end in a suffix of their own."""
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, 256, (n,), generator=generator).tolist()

    start, found = tokens(length // 3), []
    middles = [tokens(length - length // 3 - SUFFIX) for _ in range(3)]
    for _ in range(count):
        end = tokens(SUFFIX)
        found.append(TokenPair(*([*start, *middle, *end] for middle in middles), SUFFIX, ""))
    return found


def random_llama(layers: int, vocabulary: int) -> LoadedModel:
    """A Llama of a size with random weights and the byte tokenizer."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.eval().requires_grad_(False)
    tokenizer, spec = byte_tokenizer(), ModelSpec(source="random")
    layout = decoder_layers(model)[1]
    return LoadedModel(model, tokenizer, Chat(tokenizer), spec, None, layout)


def measure(point: dict[str, int], repeats: int) -> tuple[int, float, float]:
    """(nodes, median seconds, operations) of a step."""
    lm = random_llama(point["layers"], point["vocabulary"])
    writers = place_writers(find_writers(lm.model), point["layers"], 0.1, 0.5, 64)
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(point["rank"]))
        for w in writers
    }
    adapter = create_adapter(kept, AdapterSpec(rank=point["rank"]), 0)
    objective = Objective(
        lm,
        random_basis(WIDTH, 4, 0).columns,
        LossesSpec(),
        SubspaceSpec(),
        budget=BUDGET,
        cache_mb=512,
    )
    batch = pairs_of(point["pairs"], point["length"])
    objective.remember(batch)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        objective(adapter, batch).total.backward()
        times.append(time.perf_counter() - started)
    nodes = pack([row for p in batch for row in p[:3]]).num_nodes
    widths = sum(f.u.shape[0] + f.v.shape[0] for f in kept.values())
    # The first step also warms up.
    return nodes, statistics.median(times[1:]), operations(point, nodes, writers[0].layer, widths)


def operations(point: dict[str, int], nodes: int, first: int, widths: int) -> float:
    """Floating-point operations of the matrix products of one step.

    Args:
        point: Sizes of the model and of the step.
        nodes: Distinct tokens of the step.
        first: First adapted layer.
        widths: Widths in and out of the adapted matrices, summed.
    """
    # A multiplication and an addition are two operations. Attention has q and o [WIDTH, WIDTH], k
    # and v [WIDTH / 2, WIDTH]; the gated MLP has three matrices [HIDDEN, WIDTH].
    layer = 2 * (2 * WIDTH * WIDTH * 1.5 + 3 * WIDTH * HIDDEN)
    # Each product forwards, and once more backwards above the first adapted layer; two
    # coefficients.
    above = point["layers"] - first
    layers = 2 * nodes * layer * (point["layers"] + above)
    low_rank = 2 * nodes * 2 * 2 * point["rank"] * widths
    # training/readout.py: three sides at 0, +1, -1; ten rows of gradients.
    rows = point["pairs"] * (SUFFIX + 1)
    head = 2 * rows * WIDTH * point["vocabulary"] * (9 + 10)
    return layers + low_rank + head


def speed() -> float:
    """Operations per second of one large float32 product."""
    a, b = torch.randn(1024, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * 1024 * 2048 * 2048 / min(times)


def plot(found: dict[str, list[Point]], rate: float, path: Path) -> None:
    """Seconds against each thing, the floor below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        x = [p.x for p in points]
        axes.plot(x, [p.seconds for p in points], "o-", color="black", label="measured")
        floor = [p.operations / rate for p in points]
        axes.plot(x, floor, "s--", color="0.5", label="floor")
        axes.set_xlabel(LABELS[name])
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    figure.axes[0].set_ylabel("seconds per step")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.svg"))
    parser.add_argument("--json", type=Path, default=Path("scaling.json"))
    given = parser.parse_args()
    rate = speed()
    threads = torch.get_num_threads()
    print(f"one large float32 product: {rate / 1e9:.0f} GFLOP/s on {threads} threads")
    found: dict[str, list[Point]] = {}
    for name, values in POINTS.items():
        for x in values:
            point = Point(x, *measure(MIDDLE | {name: x}, given.repeats))
            found.setdefault(name, []).append(point)
            print(
                f"{name:10} {x:7}  nodes {point.nodes:5}  {point.seconds:7.3f} s   floor "
                f"{point.operations / rate:7.3f} s   "
                f"{point.seconds * rate / point.operations:.2f} times the floor",
                flush=True,
            )
    points = {name: [p._asdict() for p in row] for name, row in found.items()}
    given.json.write_text(json.dumps({"gflops": rate / 1e9, "points": points}))
    plot(found, rate, given.out)


if __name__ == "__main__":
    main()
