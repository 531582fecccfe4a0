"""What holds a dial back where it has nothing to do: variants of recipes/honesty/instruct, each at
equal disturbance.

    python experiments/selectivity.py --model MODEL --data FOLDER --keep FOLDER [--variant NAME ...]
    python experiments/selectivity.py --table docs/selectivity.jsonl

An arm is short, so that several can be told apart in an hour on two cores: `SHORT` has 20 optimiser
steps on 40 pairs, which gives half of a dial's strength at least (docs/performance.md). `--full`
trains the recipe as it is; winners are to be trained so. Every dial is measured on the same
dilemmas and controls, where it disturbs neutral prompts by 1 nat of KL (95th percentile).

Appends a line for each variant, length and seed and skips those that are there. Dials stand in
`--keep` and are found again there; a training that was stopped is done again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.workflows import compare, dials, evaluate, prepare, progress, train

RECIPE = Path(__file__).parent.parent / "recipes" / "honesty" / "instruct.yaml"
SHORT = ["pairs.count=40", "training.epochs=5", "training.validate_every=5"]
VARIANTS: dict[str, list[str]] = {
    "mean 30, 8 a step": ["losses.anchor={count: 8}"],
    "no anchors": ["losses.anchor=null"],
    "mean 30, 16 a step": ["losses.anchor={weight: 30, count: 16}"],
    "root 100, 12 of two tokens": [
        "losses.anchor={weight: 100, count: 12, tokens: 2, aggregate: root}",
    ],
    "choice 20, 16 a step": ["losses.anchor={count: 16, choice: 20}"],
    "choice 5": ["losses.anchor={count: 8, choice: 5}"],
    "choice 5, reach 2.5": ["losses.anchor={count: 8, choice: 5, reach: 2.5}"],
    "choice 2, opposites 5": ["losses.anchor={count: 8, choice: 2, opposites: 5}"],
    "choice 5, opposites 20": ["losses.anchor={count: 8, choice: 5, opposites: 20}"],
    "choice 20, opposites 40": ["losses.anchor={count: 8, choice: 20, opposites: 40}"],
    "root 100, 16 a step": ["losses.anchor={weight: 100, count: 16, aggregate: root}"],
}
"""Changes of the recipe, which has "choice 2, opposites 5"; a weight that is not named is 30."""


def trained(model: str, name: str, seed: int, full: bool, root: Path) -> Path:
    """The folder of a variant's run, trained where there is no finished one."""
    if (done := root / "latest").exists():  # stands there once a training has ended
        return done.resolve()
    root.mkdir(parents=True, exist_ok=True)
    changes = [
        f"model.source={model}",
        *([] if full else SHORT),
        "calibration=off",
        f"training.seed={seed}",
        f"pairs.seed={seed}",
        *VARIANTS[name],
    ]
    return train.train_recipe(load_recipe(RECIPE, changes), progress.Silent(), root).folder


def corpus(name: str) -> int:
    """How many anchors a variant has to train on, with those that it holds out."""
    split = prepare.recipe_anchors(load_recipe(RECIPE, VARIANTS[name]))
    return len(split.train) + len(split.held_out) if split is not None else 0


def measure(folder: Path, data: str, limit: int) -> dict[str, Any]:
    """A dial on DailyDilemmas at equal disturbance, and what its training says."""
    watch = progress.Silent()
    dial = dials.open_dial(str(folder), watch, dials.LoadOptions(verify=False))
    wanted = evaluate.want(dial.recipe, benchmark="dailydilemmas", data=data, limit=limit)
    plan = evaluate.plan_evaluation(dial, wanted)
    (method,) = compare.compare(dial, [], plan, equal_kl=True, watch=watch)
    certificate = dial.meta.certificate
    return {
        "coefficients": method.coefficients,
        "limit": limit,
        "certificate": certificate.model_dump() if certificate else None,
        "scores": method.run.scores.model_dump(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, a row for each record."""
    lines = [
        "| arm | anchors | seed | steps | coefficients of +1 / -1 | slope, nats [95 %] |"
        " control shift +1 / -1 | selectivity [95 %] | shift +1 / -1 | acquiescence +1 / -1 |"
        " rows fixed, broken |"
        " controls flipped |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        s = r["scores"]
        up, down = (s["coefficients"][c] for c in ("1", "-1"))
        cells = [
            r["variant"],
            str(r["anchors"]),
            str(r["seed"]),
            str(r["steps"]),
            "{:+.2f} / -{:.2f}".format(*r["coefficients"]),
            _interval(s["slope"]),
            *(_ends(up, down, "control_shift", sign=""),),
            _interval(s["selectivity"]),
            *(_ends(up, down, name) for name in ("shift", "acquiescence")),
            f"{s['fixed']}, {s['broken']}",
            f"{100 * s['parts']['arbitrary_rate']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(estimate: dict[str, Any]) -> str:
    return "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**estimate)


def _ends(up: dict[str, Any], down: dict[str, Any], name: str, sign: str = "+") -> str:
    return " / ".join(f"{end[name]['value']:{sign}.2f}" for end in (up, down))


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/selectivity.jsonl"))
    parser.add_argument("--limit", type=int, default=40, help="dilemmas")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--full", action="store_true", help="the recipe's own pairs and epochs")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    path = given.table or given.out
    records = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    if given.table:
        print(table(records))
        return
    done = {(r["variant"], r["anchors"], r["full"], r["seed"]) for r in records}
    for seed in given.seeds:
        for name in given.variant or VARIANTS:
            anchors = corpus(name)  # another corpus is another experiment
            if (name, anchors, given.full, seed) in done:
                continue
            started = time.monotonic()
            place = f"{name}-{anchors}-{'full' if given.full else 'short'}-{seed}"
            root = given.keep / place.replace(" ", "-").replace(",", "")
            folder = trained(given.model, name, seed, given.full, root)
            middle = time.monotonic()
            history = (folder / "history.jsonl").read_text().splitlines()
            steps = [s for s in map(json.loads, history) if not s["validation"]]
            record = {
                "model": Path(given.model).name,
                "variant": name,
                "anchors": anchors,
                "full": given.full,
                "seed": seed,
                "steps": len(steps),
                "seconds_per_step": float(np.median(np.diff([s["seconds"] for s in steps]))),
                **measure(folder, given.data, given.limit),
                "seconds": [round(middle - started), round(time.monotonic() - middle)],
            }
            with given.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(table([record]), record["seconds"], flush=True)


if __name__ == "__main__":
    main()
