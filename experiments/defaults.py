"""Experiments behind the defaults: variants of recipes/honesty/smollm2-135m.yaml, several seeds,
what each dial does and disturbs.

    python experiments/defaults.py --out results.jsonl [--data FOLDER] [--variant NAME ...] [--seeds
    0 1 2]

Appends one line for each variant and seed and skips those that are there: it may be stopped and
started again. `--limit 0` leaves the dilemmas out: certificate, gaps and disturbance only. With
`--keep FOLDER` dials are stored there and found again, so that a later call with a limit adds the
dilemmas without training. `python experiments/defaults.py --table results.jsonl` prints the table
of `docs/LOG.md`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pasto_cli.base.files import write_text
from pasto_cli.core.steering.steerer import Scaled

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "losses: original": ["losses=original"],
    "ceiling 1": ["losses.neutral.ceiling=1.0"],
    "ceiling 1.5": ["losses.neutral.ceiling=1.5"],
    "no coherence": ["losses.coherence.weight=0", "losses.neutral.coherence=false"],
    "no monotonicity": ["losses.monotonicity.weight=0"],
    "no projection": ["losses.projection.weight=0"],
    "no orientation": ["losses.neutral.orientation_weight=0"],
    "no likeness": ["losses.neutral.likeness_weight=0"],
    "neutral weights 5 / 10": [
        "losses.neutral.orientation_weight=5",
        "losses.neutral.likeness_weight=10",
    ],
    "tokens: all": ["losses.coherence.tokens=all", "losses.monotonicity.tokens=all"],
    "directions: activation": ["adapter.directions=activation"],
    "directions: top": ["adapter.directions=top"],
    "directions: random": ["adapter.directions=random"],
    "bound: entrywise": ["adapter.bound=entrywise"],
    "subspace: taskdiff & suppressed & write": [
        "subspace.expression=taskdiff & suppressed & write"
    ],
    "subspace: centred": ["subspace.center=true"],
    "subspace: random": ["subspace.expression=random"],
    "kappa 0.15": ["losses.coherence.kappa=0.15"],
}
COMMON = ["training.epochs=2", "training.validate_every=1", "pairs.count=160"]
COEFFICIENTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def train_variant(name: str, seed: int, recipe_path: Path, root: Path) -> dict[str, Any]:
    """Train one dial into a run folder and say how it did on held-out pairs."""
    from pasto_cli.core.recipe.load import load_recipe
    from pasto_cli.workflows import progress, train

    started = time.monotonic()
    recipe = load_recipe(
        recipe_path, [*COMMON, *VARIANTS[name], f"training.seed={seed}", f"pairs.seed={seed}"]
    )
    trained = train.train_recipe(recipe, progress.Silent(), root)
    last = [json.loads(x) for x in (trained.folder / "history.jsonl").read_text().splitlines()]
    best = min((x for x in last if x["validation"]), key=lambda x: x["loss"])
    assert trained.certificate is not None
    found = {
        "variant": name,
        "seed": seed,
        "seconds": time.monotonic() - started,
        "steps": trained.result.steps,
        "certificate": trained.certificate.model_dump(),
        "angle": trained.result.angle,
        "folder": trained.folder.name,
        "validation": {
            k: best["diagnostics"].get(k)
            for k in ("gap_pos", "gap_neg", "cos_pos", "cos_neg", "tv")
        },
    }
    (root / "trained.json").write_text(json.dumps(found))
    return found


def measure_variant(
    trained: dict[str, Any], data: str | None, limit: int, root: Path
) -> dict[str, Any]:
    """A trained dial as it is and at equal disturbance."""
    from pasto_cli.base import bundled
    from pasto_cli.core.evaluation import disturbance
    from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
    from pasto_cli.core.evaluation.evaluator import NEEDED, EvalSettings, evaluate
    from pasto_cli.workflows import dials, progress

    started = time.monotonic()
    dial = dials.open_dial(
        str(root / trained["folder"]), progress.Silent(), dials.LoadOptions(verify=False)
    )
    probe = disturbance.make_probe(dial.lm, bundled.lines("sentiment_prompts.txt")[:16])
    zero = disturbance.measure_disturbance(dial.lm, dial.steerer, probe, 0.0)
    own = {
        f"{a:+g}": disturbance.summarise_disturbance(
            disturbance.measure_disturbance(dial.lm, dial.steerer, probe, a), zero
        ).model_dump()
        for a in (1.0, -1.0)
    }
    result = trained | {"disturbance": own}
    if limit == 0:
        return result | {"total_seconds": trained["seconds"] + time.monotonic() - started}
    sizes = [
        disturbance.coefficient_at_budget(dial.lm, dial.steerer, probe, sign)
        for sign in (1.0, -1.0)
    ]
    items = subset(
        load_benchmark("dailydilemmas" if data else "mini-dilemmas", data), "honesty", limit, 0
    )
    controls = [i for i in items.items if i.kind != "target"][::2]  # half of them: two cores
    items = items._replace(items=[i for i in items.items if i.kind == "target"] + controls)
    result["equal"] = sizes
    settings = EvalSettings("honesty", NEEDED, pmass_threshold=0.05, node_budget=512, seed=0)
    for label, steerer in (
        ("own", dial.steerer),
        ("equal_kl", Scaled(dial.steerer, *sizes)),
    ):
        run = evaluate(dial.lm, steerer, items, settings, provenance={})
        result[label] = run.scores.model_dump()
    result["total_seconds"] = trained["seconds"] + time.monotonic() - started
    return result


def strength_per_root_nat(r: dict[str, Any]) -> float:
    """Strength in the wanted direction over sqrt(KL p95), mean of both ends: KL grows with the
    square of a small change.
    """
    ends = [
        sign
        * r["certificate"]["strength"][f"{sign}"]["value"]
        / r["disturbance"][f"{sign:+}"]["kl_p95"]["value"] ** 0.5
        for sign in (1, -1)
    ]
    return sum(ends) / 2


def table(path: Path) -> str:
    """Markdown table of a results file: mean and spread over seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    columns = (
        "variant",
        "certified",
        "s(+1)",
        "s(-1)",
        "gap +1",
        "gap -1",
        "KL p95 +1",
        "KL p95 -1",
        "s / sqrt KL",
        "slope",
        "slope at 1 nat",
        "flips, %",
        "flips at 1 nat, %",
        "acquiescence +1, 1 nat",
        "acquiescence -1, 1 nat",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name in dict.fromkeys(r["variant"] for r in rows):
        some = [r for r in rows if r["variant"] == name]
        measured = [r for r in some if "own" in r]  # with dilemmas

        def over(
            *path: str,
            scale: float = 1.0,
            digits: int = 2,
            some: list[Any] = some,
            measured: list[Any] = measured,
        ) -> str:
            values = []
            for r in some if path[0] not in ("own", "equal_kl") else measured:
                x: Any = r
                for key in path:
                    x = x[key]
                values.append(scale * x)
            if not values:
                return ""
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            return f"{np.mean(values):+.{digits}f}{spread}"

        for r in some:
            r["per_root_nat"] = strength_per_root_nat(r)
        for r in measured:
            for label in ("own", "equal_kl"):
                c = r[label]["coefficients"]
                r[label]["slope"] = {
                    "value": (c["1"]["shift"]["value"] - c["-1"]["shift"]["value"]) / 2
                }
        at = [("equal_kl", "coefficients", c, "acquiescence", "value") for c in ("1", "-1")]
        cells = [
            name,
            f"{sum(r['certificate']['passed'] for r in some)} of {len(some)}",
            over("certificate", "strength", "1", "value"),
            over("certificate", "strength", "-1", "value"),
            over("validation", "gap_pos"),
            over("validation", "gap_neg"),
            over("disturbance", "+1", "kl_p95", "value"),
            over("disturbance", "-1", "kl_p95", "value"),
            over("per_root_nat"),
            over("own", "slope", "value"),
            over("equal_kl", "slope", "value"),
            over("own", "parts", "arbitrary_rate", scale=100, digits=0),
            over("equal_kl", "parts", "arbitrary_rate", scale=100, digits=0),
            *(over(*p) for p in at),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("experiments.jsonl"))
    parser.add_argument("--data", default=None)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--recipe",
        type=Path,
        default=Path(__file__).parent.parent / "recipes" / "honesty" / "smollm2-135m.yaml",
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the trained dials; without it they are thrown away"
    )
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    lines = (
        [json.loads(line) for line in given.out.read_text().splitlines()]
        if given.out.exists()
        else []
    )
    for name in given.variant or VARIANTS:
        for seed in given.seeds:
            if any(
                (r["variant"], r["seed"]) == (name, seed) and (given.limit == 0 or "own" in r)
                for r in lines
            ):
                continue
            with tempfile.TemporaryDirectory() as thrown_away:
                root = (given.keep or Path(thrown_away)) / f"{name}, {seed}".replace(" ", "_")
                root.mkdir(parents=True, exist_ok=True)
                there = root / "trained.json"
                trained = (
                    json.loads(there.read_text())
                    if there.exists()
                    else train_variant(name, seed, given.recipe, root)
                )
                found = measure_variant(trained, given.data, given.limit, root)
            lines = [r for r in lines if (r["variant"], r["seed"]) != (name, seed)] + [found]
            write_text(given.out, "".join(json.dumps(r) + "\n" for r in lines))
            print(
                f"{name}, seed {seed}: {found['seconds']:.0f} s training, "
                f"{found['total_seconds']:.0f} s in all",
                flush=True,
            )


if __name__ == "__main__":
    main()
