"""What verbs print, one file per table. Views only: every number was worked out before.

Data to stdout, as tables or as JSON.
"""

from pasto_cli.cli.tables.certificate import show_certificate
from pasto_cli.cli.tables.comparison import show_comparisons
from pasto_cli.cli.tables.harness import show_harness
from pasto_cli.cli.tables.oracles import show_oracles
from pasto_cli.cli.tables.runs import show_runs
from pasto_cli.cli.tables.seeds import show_spread

__all__ = [
    "show_certificate",
    "show_comparisons",
    "show_harness",
    "show_oracles",
    "show_runs",
    "show_spread",
]
