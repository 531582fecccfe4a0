"""A few tokens run through a model, to see which modules' outputs its residual stream is a sum of.

The graph of gradients is walked backwards from what each layer returns; modules leave their names
in it (`_Mark`). Behind an activation or a product of matrices (a gate, a router, attention itself)
nothing is looked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pasto_cli.core.models.linears import is_linear

PROBE_TOKENS = 4
"""Tokens that run through the model to find what writes."""
# Operations behind which nothing is looked for: what passes them is a gate or a mixture of tokens,
# not a vector that is added to the stream.
NO_WAY_THROUGH = (
    "Mm",
    "Bmm",
    "Convolution",
    "ScaledDotProduct",
    "Softmax",
    "Sigmoid",
    "Silu",
    "Gelu",
    "Relu",
    "Tanh",
    "Topk",
)


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a module multiplies by parameters of its own, as fused experts do."""
    if isinstance(module, _ConvNd | nn.Embedding) or any(map(is_linear, module.modules())):
        return False
    return any(p.dim() >= 2 and p.shape[0] > 1 for p in module.parameters(recurse=False))


class _Mark(torch.autograd.Function):
    """Leaves a tensor as it is and its name in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.writer = name
        return x.clone()  # not a view: some layers add to it in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004
        return grads[0], None


class Probe:
    """A few tokens run through a model, and what was seen on the way.

    Args:
        model: The model.
        prefix: Path of its list of layers.
        layers: The list.
    """

    def __init__(self, model: Any, prefix: str, layers: nn.ModuleList) -> None:
        self.rows: dict[str, int] = {}
        """Linear module -> number of tokens that it saw."""
        self.widths: dict[str, int] = {}
        ends: dict[int, Tensor] = {}
        embedding = model.get_input_embeddings()
        with torch.enable_grad(), _hooks() as add:
            add(embedding.register_forward_hook(_wants_gradient))
            for path, module in layers.named_modules(prefix=prefix):
                if is_linear(module):
                    self.rows[path] = 0
                if is_linear(module) or _holds_matrices(module):
                    add(module.register_forward_hook(partial(self._mark_output, path)))
            for index, layer in enumerate(layers):
                add(layer.register_forward_pre_hook(_mark_input, with_kwargs=True))
                add(layer.register_forward_hook(partial(_keep_end, ends, index)))
            ids = torch.arange(1, PROBE_TOKENS + 1, device=embedding.weight.device)[None]
            model.base_model(input_ids=ids, use_cache=False, **_mask(embedding.weight))
        self.reached = [
            {p for p in _first_marks(end.grad_fn) if self.widths[p] == end.shape[-1]}
            for _, end in sorted(ends.items())
        ]
        """For each layer the paths of the modules whose outputs its own is the sum of."""

    def routed(self, start: str, path: str) -> str | None:
        """The list in which a module is one of several that see only some of the tokens."""
        parts = path.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                outer = ".".join(parts[:i])
                inside = (n for p, n in self.rows.items() if p.startswith(f"{start}{outer}."))
                if any(n < PROBE_TOKENS for n in inside):
                    return outer
        return None

    def _mark_output(self, path: str, module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # some experts return their weights as well
            return (self._mark_output(path, module, inputs, output[0]), *output[1:])
        if path in self.rows:
            self.rows[path] = inputs[0].numel() // inputs[0].shape[-1]
        self.widths[path] = output.shape[-1]
        return _Mark.apply(output, path) if output.requires_grad else output


def _mask(weight: Tensor) -> dict[str, Tensor]:
    """A mask of our own where there are no numbers: transformers looks into those that it makes."""
    if not weight.is_meta:
        return {}
    shape = (1, 1, PROBE_TOKENS, PROBE_TOKENS)
    return {"attention_mask": torch.zeros(shape, dtype=weight.dtype, device=weight.device)}


@contextmanager
def _hooks() -> Iterator[Any]:
    """Gives a function that takes handles of hooks; they are removed on leaving."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def _wants_gradient(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.detach().requires_grad_().clone()  # no leaf: some models add to it in place


def _mark_input(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The stream that a layer is given, marked as the end of the search."""
    if args:
        return (_Mark.apply(args[0], ""), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": _Mark.apply(kwargs["hidden_states"], "")}


def _keep_end(ends: dict[int, Tensor], index: int, _module: Any, _inputs: Any, output: Any) -> None:
    ends[index] = output[0] if isinstance(output, tuple) else output


def _first_marks(node: Any) -> set[str]:
    """Names of the marks that are met first on all ways back from a node of the graph."""
    found: set[str] = set()
    seen, ahead = {node}, [node]
    while ahead:
        node = ahead.pop()
        if (name := getattr(node, "writer", None)) is not None:
            found.add(name)
            continue
        kind = type(node).__name__
        if any(kind.startswith(operation) for operation in NO_WAY_THROUGH):
            continue
        new = {follower for follower, _ in node.next_functions if follower is not None} - seen
        seen |= new
        ahead += new
    return found - {""}
