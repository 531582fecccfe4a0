"""Activations: what the clean base model holds at the last token of each side of each pair.

Directions (AntiPaSTO, arXiv 2601.07473: scores S mean|h B| and S |mean(h_cho - h_rej) B|), loss
subspaces and steering vectors are all chosen from these states.

Legend: n rows, alternately chosen and rejected (n = 2 pairs), d d_model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.forward import run_packed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import Writer
from pasto_cli.core.models.tokentree import pack_groups


class Activations(NamedTuple):
    """States at the last token of each side of each pair, float32, on the cpu."""

    hidden: Tensor
    """(n, layers + 1, d): residual stream before the first layer and after each that was run."""
    inputs: dict[str, Tensor]
    """Writer path -> (n, d_in): the module's own input."""
    normed: Tensor | None
    """(n, d): after the last layer and the final norm, and a projection where the head has one;
    None if not all layers were run."""

    def as_reported(self) -> Tensor:
        """`hidden` as transformers reports hidden states: the last one after the final norm."""
        assert self.normed is not None
        if self.normed.shape[-1] != self.hidden.shape[-1]:  # projected for a narrower head
            return self.hidden
        return torch.cat([self.hidden[:, :-1], self.normed[:, None]], dim=1)  # (n, layers + 1, d)


@torch.no_grad()
def collect_activations(
    lm: LoadedModel,
    pairs: Sequence[TokenPair],
    writers: Sequence[Writer],
    budget: int,
    layers: int | None = None,
) -> Activations:
    """Run the clean base model over pairs and keep what it holds at the last token of each side.

    Args:
        lm: The model.
        pairs: Pairs in tokens.
        writers: Modules whose inputs are wanted.
        budget: Nodes of one token tree.
        layers: Run this many only; all by default.
    """
    run_layers = lm.layers[:layers]
    complete = len(run_layers) == len(lm.layers)
    rows = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    hidden = torch.empty(len(rows), len(run_layers) + 1, lm.hidden_size)
    normed = torch.empty(0)
    inputs = {w.path: torch.empty(0) for w in writers}
    for group, packed in pack_groups(rows, budget, lm.trees):
        ends = torch.stack([path[-1] for path in packed.paths]).to(
            lm.device
        )  # (rows of the group,)
        seen: dict[str, Tensor] = {}
        # Hooks keep the ends only: whole states of every layer would not fit beside a large model.
        with ExitStack() as stack:
            for i, layer in enumerate(run_layers):
                stack.callback(_keep_input(layer, f"layer {i}", ends, seen).remove)
            for writer in writers:
                stack.callback(_keep_input(writer.module, writer.path, ends, seen).remove)
            # Registered before `run_packed` adds the hook that ends the pass at this layer.
            stack.callback(_keep_output(run_layers[-1], "out", ends, seen).remove)
            last = run_packed(lm, packed, stop=layers).last[0, ends].float().cpu()
        if not normed.numel():  # its width is known from the first pass
            normed = torch.empty(len(rows), last.shape[-1])
        normed[group] = last
        states = [seen[f"layer {i}"] for i in range(len(run_layers))] + [seen["out"]]
        hidden[group] = torch.stack(states, dim=1)  # (rows of the group, layers + 1, d)
        for writer in writers:
            if not inputs[writer.path].numel():  # its width is known from the first input
                inputs[writer.path] = torch.empty(len(rows), seen[writer.path].shape[-1])
            inputs[writer.path][group] = seen[writer.path]
    return Activations(hidden, inputs, normed if complete else None)


def _keep_input(
    module: nn.Module, name: str, nodes: Tensor, seen: dict[str, Tensor]
) -> RemovableHandle:
    """Hook a module: keep its input at some flat nodes."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name] = _at_nodes(args[0] if args else kwargs["hidden_states"], nodes)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _keep_output(
    module: nn.Module, name: str, nodes: Tensor, seen: dict[str, Tensor]
) -> RemovableHandle:
    """Hook a module: keep its output at some flat nodes."""

    def hook(_module: Any, _args: Any, output: Any) -> None:
        seen[name] = _at_nodes(output[0] if isinstance(output, tuple) else output, nodes)

    return module.register_forward_hook(hook)


def _at_nodes(x: Tensor, nodes: Tensor) -> Tensor:
    """(s, n, d) -> float32 (nodes, d), on the cpu."""
    return x.reshape(-1, x.shape[-1])[nodes.to(x.device)].float().cpu()
