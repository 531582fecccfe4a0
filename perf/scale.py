"""What a training step costs as things grow: pairs, nodes, rank, vocabulary, layers, against the
arithmetic that it needs.

    python -m perf.scale [--out docs/scaling.svg] [--json scaling.json]

Random Llama models; one thing varies at a time, the rest stays at the middle of its row. The floor
is the number of floating-point operations of the matrix products, divided by the speed of one large
product on the same machine."""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pasto_cli.core.models.chat import Chat, TokenPair
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.models.residual_writers import (
    decoder_layers,
    dense_weight,
    find_writers,
    place_writers,
)
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.recipe.schema import AdapterSpec, LossesSpec, ModelSpec, SubspaceSpec
from pasto_cli.core.steering.adapter import Adapter, decompose, select_directions
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
    "pairs": "pairs a step",
    "length": "tokens of a prompt",
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


def measure(point: dict[str, int], repeats: int) -> tuple[int, float, float]:
    """(nodes, median seconds, operations) of a step."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=point["layers"],
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=point["vocabulary"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = (
        AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        .eval()
        .requires_grad_(False)
    )
    tokenizer = byte_tokenizer()
    lm = LoadedModel(
        model,
        tokenizer,
        Chat(tokenizer),
        ModelSpec(source="random"),
        None,
        decoder_layers(model)[1],
    )
    writers = place_writers(find_writers(model), point["layers"], 0.1, 0.5, 64)
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(point["rank"]))
        for w in writers
    }
    adapter = Adapter.create(kept, AdapterSpec(rank=point["rank"]), 0)
    objective = Objective(
        lm, random_basis(WIDTH, 4, 0).columns, LossesSpec(), SubspaceSpec(), BUDGET, 512
    )
    batch = pairs_of(point["pairs"], point["length"])
    objective.remember(batch)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        objective(adapter, batch).total.backward()
        times.append(time.perf_counter() - started)
    nodes = pack([row for p in batch for row in p[:3]]).num_nodes
    # Each product forwards, and once more backwards above the first adapted layer; two
    # coefficients.
    layer = 2 * (2 * WIDTH * WIDTH * 1.5 + 3 * WIDTH * HIDDEN)
    above = point["layers"] - writers[0].layer
    layers = 2 * nodes * layer * (point["layers"] + above)
    low_rank = (
        2
        * nodes
        * 2
        * 2
        * sum(point["rank"] * (f.u.shape[0] + f.v.shape[0]) for f in kept.values())
    )
    rows = point["pairs"] * (SUFFIX + 1)
    head = (
        2 * rows * WIDTH * point["vocabulary"] * (9 + 10)
    )  # readout.py: three sides at 0, +1, -1; ten rows of gradients
    return nodes, statistics.median(times[1:]), layers + low_rank + head


def speed() -> float:
    """Operations a second of one large float32 product."""
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
        axes.plot(
            [p.x for p in points],
            [p.seconds for p in points],
            "o-",
            color="black",
            label="measured",
        )
        axes.plot(
            [p.x for p in points],
            [p.operations / rate for p in points],
            "s--",
            color="0.5",
            label="floor",
        )
        axes.set_xlabel(LABELS[name])
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    figure.axes[0].set_ylabel("seconds a step")
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
    print(
        f"one large float32 product: {rate / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads"
    )
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
    given.json.write_text(
        json.dumps(
            {
                "gflops": rate / 1e9,
                "points": {k: [p._asdict() for p in v] for k, v in found.items()},
            }
        )
    )
    plot(found, rate, given.out)


if __name__ == "__main__":
    main()
