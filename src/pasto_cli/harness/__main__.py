"""`python -m pasto_cli.harness`: the `lm_eval` command, which knows `--model pasto`.

Versions of the harness after 0.4.13 find that model by themselves, by the entry point
`lm_eval.models`; those up to 0.4.13 do not look, and need this.
"""

# The harness is an optional extra.
# pyright: reportMissingImports=false

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import model_registry

from pasto_cli.workflows.harnesses.dial_lm import PastoLM


def main() -> None:
    """Run lm-evaluation-harness."""
    if "pasto" not in model_registry:
        model_registry.register("pasto")(PastoLM)
    cli_evaluate()


if __name__ == "__main__":
    main()
