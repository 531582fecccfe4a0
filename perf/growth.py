"""How much a process grows when it loads a dial and turns it, in a process of its own.

    python -m perf.growth ADAPTER_FOLDER [none|4bit|8bit]

The first dial also brings in pages of libraries that no process had touched before; what a dial
itself holds is the growth by another one beside it. A single such growth is as much the allocator's
doing as the dial's: it rounds up, and fills holes that others left. Hence the median of several.
Prints JSON, MiB.
"""

import argparse
import gc
import json
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from pasto_cli.core.artifact import store
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import ModelSpec
from pasto_cli.workflows import dials, progress

FURTHER = 5  # dials after the first


def resident() -> float:
    """MiB that this process holds in memory now."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@torch.no_grad()
def growth(lm: LoadedModel, folder: Path) -> dict[str, float]:
    """MiB: the base's weights, growth by the first dial, by another in the median."""
    meta = store.read_meta(folder)
    ids = torch.tensor([lm.chat.prompt("Tell me about a lake.")], device=lm.device)
    for _ in range(3):
        lm.model(input_ids=ids)
    seen, held = [resident()], []
    for _ in range(1 + FURTHER):
        held.append(store.load_adapter(folder, meta, lm, verify=False))
        for coefficient in (1.0, -1.0):
            with held[-1].at(lm.model, coefficient):
                lm.model(input_ids=ids)
        seen.append(resident())
    grown = [after - before for before, after in pairwise(seen)]
    return {
        "base": lm.model.get_memory_footprint() / 2**20,
        "first": grown[0],
        "another": median(grown[1:]),
    }


def main() -> None:
    """Load the adapter's base in a quantization, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", type=Path)
    parser.add_argument("quantization", nargs="?", default="none")
    given = parser.parse_args()
    base = store.read_meta(given.adapter).base.spec.model_dump() | {
        "quantization": given.quantization
    }
    lm = dials.open_model(ModelSpec.model_validate(base), progress.Silent(), packing=False)
    print(json.dumps(growth(lm, given.adapter)))


if __name__ == "__main__":
    main()
