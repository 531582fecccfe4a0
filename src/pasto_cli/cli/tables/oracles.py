"""What the metric gives to simulated steerers."""

from collections.abc import Sequence

from pasto_cli.cli.console import out, print_json
from pasto_cli.cli.tables.common import Figures, format_f1, say, warn_of_sign
from pasto_cli.core.evaluation.benchmarks import Benchmark
from pasto_cli.core.evaluation.oracles import OracleScore
from pasto_cli.core.records.scores import LabelSign


def show_oracles(
    benchmark: Benchmark,
    value: str,
    labelled: int,
    scores: Sequence[OracleScore],
    label_sign: LabelSign,
    json: bool,
) -> None:
    """What the metric gives to simulated steerers."""
    if json:
        print_json(
            {
                "benchmark": benchmark.name,
                "value": value,
                "label_sign": label_sign,
                "rows": labelled,
                "oracles": [s.model_dump() for s in scores],
            }
        )
        return
    warn_of_sign(label_sign)
    say(f"Simulated steerers on {benchmark.title}: {value}, n = {labelled} labelled rows")
    table = Figures(
        "steerer",
        "Steering F1 [95 %]",
        "mean of 20 draws",
        "informedness",
        "shift, nats",
        "acquiescence, nats",
    )
    for s in scores:
        table.add_row(
            s.name,
            format_f1(s.f1),
            f"{s.mean_f1:.1f}",
            f"{s.informedness:+.1f}",
            f"{s.shift:+.2f}",
            f"{s.acquiescence:+.2f}",
        )
    out.print(table)
