"""Does text at the ends of a dial still read, on prompts that calibration did not look at?

    python experiments/texts.py RUN... [--prompts 40]

Calibration lowers an end until twelve answers read; this asks for answers
to other prompts, by the same figures and thresholds. One line of JSON for each run: coefficients in
use, figures at -1, 0 and +1, and what is wrong at each end.
"""

import argparse
import json

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.calibration import read_texts
from pasto_cli.core.evaluation.text_quality import faults
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec
from pasto_cli.workflows.dials import open_dial
from pasto_cli.workflows.progress import Silent


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--prompts", type=int, default=40)
    given = parser.parse_args()
    prompts = bundled.lines("sentiment_prompts.txt")[: given.prompts]
    assert not set(prompts) & set(bundled.lines("calibration_prompts.txt"))
    spec = CalibrationSpec()
    for run in given.runs:
        dial = open_dial(run, Silent(), packing=False)
        down, base, up = read_texts(dial.lm, dial.steerer, prompts, spec, [-1.0, 0.0, 1.0])
        found = {
            "run": run,
            "coefficients": dial.meta.calibration and dial.meta.calibration.coefficients,
            "texts": {c: q.model_dump() for c, q in (("-1", down), ("0", base), ("1", up))},
            "faults": {"-1": faults(down, base, spec), "1": faults(up, base, spec)},
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
