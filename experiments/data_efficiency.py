"""How many pairs does a dial need? Cost and quality against the number of pairs, several seeds.

    python experiments/data_efficiency.py --model MODEL [--out docs/data_efficiency.jsonl]
    python experiments/data_efficiency.py --model MODEL --pairs 10 --epochs 56 --out FILE
    python experiments/data_efficiency.py --table docs/data_efficiency.jsonl [--plot FILE.svg]

Every dial is measured by the same `HELD_OUT` openings and by neutral prompts that none of them was
trained on; the pairs of a seed are drawn from the rest, those of a smaller number being the first
of a larger one. Each trains for 20 optimiser steps at least (`EPOCHS`): ten pairs in four epochs
would be four steps, which says nothing of pairs. Losses and adapter are those of
recipes/honesty/instruct without its anchors, which cost a third of a step and hold a dial back
where it has nothing to do, whatever the number of pairs.

Quality is the strength on held-out openings where each dial disturbs neutral prompts by 1 nat of KL
(95th percentile), in prompt-equivalents: no benchmark, and equal disturbance for all.

Appends a line for each number and seed and skips those that are there: it may be stopped at any
time.
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.certificate import measure_persona_llr
from pasto_cli.core.evaluation.disturbance import coefficient_at_budget, make_probe
from pasto_cli.core.models.chat import tokenise_pairs
from pasto_cli.core.pairs.pairs import Pair, make_pairs, write_pairs
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.steering.steerer import Scaled
from pasto_cli.workflows import dials, progress, train

COUNTS = (10, 20, 40, 80, 160, 400)
EPOCHS = {10: 20, 20: 10, 40: 5, 80: 4, 160: 4, 400: 2}
"""20, 20, 20, 32, 56 and 70 optimiser steps or so, of eight pairs."""
HELD_OUT = 40
"""Openings that measure every dial."""
PROBE = 16
"""Neutral prompts that the budget is measured on."""
RECIPE = Path(__file__).parent.parent / "recipes" / "honesty" / "instruct.yaml"
ENDS = (1.0, -1.0)


def pool(recipe: Recipe) -> tuple[list[Pair], list[Pair]]:
    """All pairs that there are: (held-out, the rest); they share neither openings nor prompts."""
    spec = recipe.pairs.model_copy(update={"count": 100_000, "seed": 0})
    pairs = make_pairs(spec).pairs
    suffixes = sorted({pair.suffix for pair in pairs})
    prompts = sorted({pair.neutral for pair in pairs})
    rng = random.Random(0)
    rng.shuffle(suffixes)
    rng.shuffle(prompts)
    own, kept = set(suffixes[:HELD_OUT]), prompts[: len(prompts) // 4]
    # No opening may begin another one's: "I" would be held out beside "I think".
    shared = {s for s in suffixes if any(s.startswith(o) or o.startswith(s) for o in own)}
    held_out = {pair.suffix: pair for pair in pairs if pair.suffix in own}
    rest = [pair for pair in pairs if pair.suffix not in shared]
    return (
        [
            pair.model_copy(update={"neutral": kept[i % len(kept)]})
            for i, pair in enumerate(held_out.values())
        ],
        [_with_prompt(pair, prompts[len(kept) :], rng) for pair in rest],
    )


def _with_prompt(pair: Pair, prompts: list[str], rng: random.Random) -> Pair:
    return pair.model_copy(update={"neutral": rng.choice(prompts)})


def drawn(rest: list[Pair], count: int, seed: int) -> list[Pair]:
    """The first pairs of a seed's order: each opening once before any comes twice."""
    order = list(rest)
    random.Random(seed).shuffle(order)
    seen: dict[str, int] = {}
    laps = []
    for pair in order:
        seen[pair.suffix] = seen.get(pair.suffix, -1) + 1
        laps.append(seen[pair.suffix])
    ranked = sorted(range(len(order)), key=lambda i: laps[i])  # stable
    return [order[i] for i in ranked[:count]]


def measure(model: str, count: int, epochs: int, seed: int, root: Path) -> dict[str, Any]:
    """Train one dial and say what it cost and how strong it is."""
    base = load_recipe(RECIPE, [f"model.source={model}"])
    held_out, rest = pool(base)
    write_pairs(drawn(rest, count, seed), root / "pairs.jsonl")
    changes = [
        f"model.source={model}",
        "pairs={file: " + str(root / "pairs.jsonl") + "}",
        "losses.anchor=null",
        "calibration=off",
        f"training.epochs={epochs}",
        "training.validate_every=1",
        f"training.seed={seed}",
    ]
    started = time.monotonic()
    trained = train.train_recipe(load_recipe(RECIPE, changes), progress.Silent(), root)
    seconds = time.monotonic() - started
    lines = (trained.folder / "history.jsonl").read_text().splitlines()
    steps = [s for s in map(json.loads, lines) if not s["validation"]]
    dial = dials.open_dial(str(trained.folder), progress.Silent(), dials.LoadOptions(verify=False))
    probe = make_probe(dial.lm, bundled.lines("sentiment_prompts.txt")[:PROBE])
    sizes = [coefficient_at_budget(dial.lm, dial.steerer, probe, sign) for sign in ENDS]
    tokens, _ = tokenise_pairs(held_out, dial.lm.chat)
    budget = base.training.node_budget
    found: dict[str, Any] = {}
    for name, steerer in (("own", dial.steerer), ("equal", Scaled(dial.steerer, *sizes))):
        llr = measure_persona_llr(dial.lm, steerer, tokens, ENDS, budget)
        found[name] = {f"{a:+g}": llr.strength(a).model_dump() for a in ENDS}
    return {
        "model": Path(model).name,
        "pairs": count,
        "seed": seed,
        "trained": dial.meta.num_pairs["train"],
        "steps": trained.result.steps,
        "best_epoch": trained.result.best_epoch,
        "seconds": round(seconds, 1),
        "seconds_per_step": round(float(np.median(np.diff([s["seconds"] for s in steps]))), 2),
        "coefficients": sizes,
        "held_out": len(tokens),
        "strength": found,
    }


def dose(record: dict[str, Any], name: str) -> float:
    """Half of what lies between the ends, prompt-equivalents: how far a dial goes."""
    ends = record["strength"][name]
    return (ends["+1"]["value"] - ends["-1"]["value"]) / 2


def both_ways(record: dict[str, Any]) -> bool:
    """Whether both ends move their way for certain at the budget."""
    ends = record["strength"]["equal"]
    return ends["+1"]["low"] > 0 > ends["-1"]["high"]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: mean and spread over seeds."""
    lines = [
        "| pairs | seeds | steps | seconds a step | strength at 1 nat, half of +1 to -1 | at +1 "
        " | at -1 | both ends certain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for count in sorted({r["pairs"] for r in records}):
        some = [r for r in records if r["pairs"] == count]
        cells = [
            str(count),
            str(len(some)),
            " to ".join(str(n) for n in sorted({r["steps"] for r in some})),
            f"{_step(some):.1f}",
            _spread([dose(r, "equal") for r in some]),
            *(_end(some, end) for end in ("+1", "-1")),
            f"{sum(map(both_ways, some))} of {len(some)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _step(some: list[dict[str, Any]]) -> float:
    """Seconds a step of the fastest run: seeds were run on several machines, some two at once."""
    return min(r["seconds_per_step"] for r in some)


def _end(some: list[dict[str, Any]], end: str) -> str:
    """Mean and spread over seeds; the interval over openings where there is one seed."""
    found = [r["strength"]["equal"][end] for r in some]
    if len(found) > 1:
        return _spread([x["value"] for x in found])
    return f"{found[0]['value']:+.2f} [{found[0]['low']:+.2f}, {found[0]['high']:+.2f}]"


def _spread(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{spread}"


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Quality and cost against the number of pairs, a point for each seed; see `_step`."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "pasto", "svg.fonttype": "none"}
    counts = sorted({r["pairs"] for r in records})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    means = [np.mean([dose(r, "equal") for r in records if r["pairs"] == n]) for n in counts]
    left.plot(counts, means, color="#1f6f8b")
    for r in records:
        left.plot(r["pairs"], dose(r, "equal"), "o", color="#1f6f8b", alpha=0.6)
    for n in counts:
        some = [r for r in records if r["pairs"] == n]
        minutes = [r["steps"] * _step(some) / 60 for r in some]
        right.plot([n] * len(some), minutes, "o", color="#b5541c", alpha=0.6)
    left.set(ylabel="strength at 1 nat, prompt-equivalents")
    right.set(ylabel="minutes of training steps")
    for axis in (left, right):
        axis.set(xlabel="pairs", xscale="log", ylim=(0, 1.1 * axis.dataLim.y1))
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=Path("docs/data_efficiency.jsonl"))
    parser.add_argument("--pairs", type=int, nargs="+", default=COUNTS, choices=COUNTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--epochs", type=int, help="instead of those of a number; wants an --out of its own"
    )
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    path = given.table or given.out
    records = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    if given.table:
        print(table(records))
        if given.plot:
            plot(records, given.plot)
        return
    done = {(r["pairs"], r["seed"]) for r in records}
    for seed in given.seeds:
        for count in given.pairs:
            if (count, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as root:
                epochs = given.epochs or EPOCHS[count]
                record = measure(given.model, count, epochs, seed, Path(root))
            assert math.isfinite(dose(record, "equal"))
            with given.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
