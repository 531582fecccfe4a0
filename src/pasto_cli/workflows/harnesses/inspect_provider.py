"""What inspect_ai loads to find `pasto/RUN@COEFFICIENT`; the model itself is imported when used."""

# The harness is an optional extra.
# pyright: reportMissingImports=false

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="pasto")
def pasto() -> Any:
    """The class of the models that are called `pasto/...`."""
    from pasto_cli.workflows.harnesses.inspect_model import DialAPI

    return DialAPI
