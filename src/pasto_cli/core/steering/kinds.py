"""Every kind of adapter by the name that recipes and pasto.json give it.

A new kind is a module beside `cayley` and `lora`, and a line here.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.steering.adapter import Adapter, Settings
from pasto_cli.core.steering.cayley import CayleyAdapter
from pasto_cli.core.steering.factors import Factors
from pasto_cli.core.steering.lora import LoraAdapter

KINDS: dict[str, type[Adapter]] = {"cayley": CayleyAdapter, "lora": LoraAdapter}


def create_adapter(kept: Mapping[str, Factors], spec: AdapterSpec, seed: int) -> Adapter:
    """A fresh adapter of the kind that a recipe names; see `Adapter.create`."""
    return KINDS[spec.kind].create(kept, spec, seed)


def tensor_names(kind: str, paths: Sequence[str]) -> list[str]:
    """Names under which `to_tensors` gives the tensors of some modules: `<module path>.<part>`."""
    return [f"{path}.{part}" for path in paths for part in KINDS[kind].MODULE.PARTS]


def from_tensors(
    paths: Sequence[str], tensors: Mapping[str, Tensor], settings: Settings
) -> Adapter:
    """The adapter that `to_tensors` took apart.

    Args:
        paths: Module paths, in the adapter's order.
        tensors: By name; others than those of `paths` are left alone.
        settings: Its kind, and what that needs beside tensors.

    Raises:
        KeyError: If a tensor is missing.
    """
    kind = KINDS[settings.kind]
    by_path = {
        path: {part: tensors[f"{path}.{part}"] for part in kind.MODULE.PARTS} for path in paths
    }
    return kind.restore(by_path, settings)
