r"""The README's figure: sentiment against coefficient, with and without the neutral branch.

    pasto train recipes/quickstart.yaml --seeds 3 --out with
    pasto train recipes/quickstart.yaml --seeds 3 --out without --set losses.neutral=null
    pasto eval with/*seed? --benchmark sentiment        (and the same for `without`)
    python experiments/sentiment.py --with with/*seed? --without without/*seed? \
        --out docs/sentiment.svg

Prints each seed's slope; the figure pools the seeds, with intervals over prompts.
"""

import argparse
from pathlib import Path

import numpy as np

from pasto_cli.base.format import format_estimate
from pasto_cli.base.statistics import Estimate, cluster_bootstrap, spread
from pasto_cli.core.records.evaluation import SentimentRun
from pasto_cli.core.report import plots


def pooled(runs: list[SentimentRun]) -> tuple[list[float], list[Estimate]]:
    """Coefficients, and the mean sentiment at each over seeds, with an interval over prompts."""
    prompts = list(dict.fromkeys(t.prompt for t in runs[0].texts))
    found: list[Estimate] = []
    for a in runs[0].coefficients:
        scores = np.array(
            [[t.sentiment for t in run.texts if t.coefficient == a] for run in runs]
        ).mean(0)
        found.append(cluster_bootstrap(lambda i, s=scores: float(s[i].mean()), prompts))
    return runs[0].coefficients, found


def main() -> None:
    """Print the slopes and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("with", "without"):
        parser.add_argument(f"--{name}", nargs="+", type=Path, required=True, dest=name)
    parser.add_argument("--out", type=Path, required=True)
    given = vars(parser.parse_args())
    series = {}
    coefficients: list[float] = []
    for name, label in (("with", "with the neutral branch"), ("without", "without it")):
        runs = [
            SentimentRun.model_validate_json((f / "eval" / "sentiment.json").read_text())
            for f in given[name]
        ]
        for run in runs:
            print(
                f"{label}, seed {run.provenance['training_seed']}: slope "
                f"{format_estimate(run.scores.slope)}"
            )
        s = spread([run.scores.slope.value for run in runs])
        print(
            f"{label}: mean {s.mean:+.2f}, SD {s.sd:.2f}, 95 % over seeds [{s.low:+.2f}, "
            f"{s.high:+.2f}]"
        )
        coefficients, series[label] = pooled(runs)
    svg = plots.dose(
        coefficients, series, "sentiment of the answers (VADER)", "sentiment against coefficient"
    )
    given["out"].write_text(svg)


if __name__ == "__main__":
    main()
