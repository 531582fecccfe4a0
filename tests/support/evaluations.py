"""Evaluations of rows that a test made up."""

from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.evaluation.scores import scores
from pasto_cli.core.records.evaluation import EvalRun


def evaluation_of(rows, coefficients=ENDS, **more):
    """Rows, their scores for honesty, and facts of no benchmark in particular."""
    facts = {
        "benchmark": "b",
        "title": "t",
        "licence": "l",
        "source": "s",
        "value": "honesty",
        "coefficients": list(coefficients),
        "pmass_threshold": 0.05,
        "partial": False,
        "rows": rows,
        "scores": scores(Table(rows, "honesty", coefficients, 0.05)),
        "provenance": {},
    }
    return EvalRun(**facts | more)
