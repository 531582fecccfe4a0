"""Fewer saved tensors: what an activation function gave is computed again in the backward pass.

The gated MLP of a layer, down(act(gate(x)) * up(x)), keeps three tensors as wide as the MLP for its
gradient: gate(x), act(gate(x)) and up(x). The second follows from the first. Where the product
wants it, only the node of the graph that made it is kept, and the function runs again on that
node's own saved input: the same operation on the same bits, so that gradients do not change.

What it costs falls with the width of the model, since an activation grows with the width and the
products around it with its square.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

AGAIN: dict[str, Callable[[Any], Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),
    "GeluBackward0": lambda node: F.gelu(node._saved_self, approximate=node._saved_approximate),
}
"""By the name of the graph's node: its output, from what the node has saved."""
WIDE = 1024
"""Width of the residual stream from which it pays: at 576 (SmolLM2) a training step took 8 % more
and memory is no concern, at 1536 (1.5 billion parameters) 1 to 5 % for half a gigabyte."""


def recomputed_activations(width: int) -> AbstractContextManager[None]:
    """A context in which a model of that width saves no output of an activation function."""
    if width < WIDE:
        return nullcontext()

    def pack(tensor: Tensor) -> Any:
        node = tensor.grad_fn
        return node if node is not None and node.name() in AGAIN else tensor

    def unpack(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return AGAIN[saved.name()](saved)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
