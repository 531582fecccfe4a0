"""Layers in bfloat16: every weight is rounded once, not once a pass.

torch.autocast keeps its rounded copy of a weight only where the weight is trained. Those of a base
never are, so that each pass would round all of them anew, and autograd would keep as many copies as
a step has passes. Here one copy stands in for each linear weight of the layers while a pass runs;
autocast finds it rounded already, and every product has the same operands, bit for bit.

A copy is made when the first pass runs, of the weights that are there then. One that is changed in
place after that would leave its copy behind: bases are frozen, and nothing here does so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pasto_cli.core.models.linears import is_linear
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.spread import is_spread_out


@contextmanager
def low_layers(lm: LoadedModel) -> Iterator[None]:
    """Runs layers in bfloat16 where the model is told to (`devices.layer_precision`)."""
    if not lm.autocast:
        yield
        return
    if not lm.low_weights:
        lm.low_weights = {weight: _low(weight) for _, weight in _linear(lm)}
    # What stands in for a weight (a dial that is baked) has no copy: autocast rounds it.
    found = [(m, weight) for m, weight in _linear(lm) if weight in lm.low_weights]
    try:
        for module, weight in found:
            module._parameters["weight"] = lm.low_weights[weight]
        with torch.autocast(lm.device.type, torch.bfloat16):
            yield
    finally:
        for module, weight in found:
            module._parameters["weight"] = weight


def _linear(lm: LoadedModel) -> list[tuple[nn.Module, nn.Parameter]]:
    """Linear modules of the layers and their weights, where these are plain float32 and at hand."""
    if is_spread_out(lm.model):
        return []
    each = ((module, module._parameters.get("weight")) for module in lm.layers.modules())
    return [(m, x) for m, x in each if x is not None and is_linear(m) and x.dtype == torch.float32]


def _low(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
