"""A model on several devices: a layer stands on one, and hooks of accelerate bring states along.

What is made of the model comes back to the device of its embeddings (`LoadedModel.device`), where
the adapter's trained numbers and the losses are; factors of the adapter follow the states of their
module (`steering.hooks`). Weights that wait in memory or on disk are there inside a forward pass
only, and while `weight_here` holds them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def spread_out(model: Any, device_map: Mapping[str, Any] | None = None, **how: Any) -> Any:
    """Dispatch a model that is in memory.

    Args:
        model: On the CPU.
        device_map: Module path -> device, `cpu` or `disk`; None balances it over what is here.
        how: What accelerate takes beside it, such as `offload_dir`.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    names = getattr(model, "_no_split_modules", None)
    if device_map is None:
        most = get_balanced_memory(model, no_split_module_classes=names)
        device_map = infer_auto_device_map(model, most, no_split_module_classes=names)
    return dispatch_model(model, dict(device_map), **how)


def is_spread_out(model: Any) -> bool:
    """Whether a model's modules have devices of their own."""
    return getattr(model, "hf_device_map", None) is not None


@contextmanager
def weight_here(module: nn.Module) -> Iterator[None]:
    """Have a module's weight at hand, also where it waits in memory or on disk."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type != "meta":
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module, execution_device=torch.device("cpu")):
        yield
