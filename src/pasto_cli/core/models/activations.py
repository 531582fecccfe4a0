"""What the clean base model does at the end of each prompt: states from which directions and
subspaces are chosen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.forward import run_packed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import Writer
from pasto_cli.core.models.tokentree import pack_groups


class Activations(NamedTuple):
    """States at the last token of each side of each pair; rows alternate cho, rej (n = 2 pairs)."""

    hidden: Tensor
    """(n, layers + 1, d_model) float32, cpu: residual stream before the first layer and after each
    that was run."""
    inputs: dict[str, Tensor]
    """Writer path -> (n, d_in) float32, cpu: the module's own input."""
    normed: Tensor | None
    """(n, d_model) float32, cpu: after the last layer and the final norm; None if not all layers
    were run."""

    def as_reported(self) -> Tensor:
        """`hidden` as transformers reports hidden states: the last one after the final norm. (n,
        layers + 1, d_model)."""
        assert self.normed is not None
        return torch.cat([self.hidden[:, :-1], self.normed[:, None]], dim=1)


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
    whole = len(run_layers) == len(lm.layers)
    rows = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    hidden = torch.empty(len(rows), len(run_layers) + 1, lm.hidden_size)
    normed = torch.empty(len(rows), lm.hidden_size)
    inputs = {w.path: torch.empty(0) for w in writers}
    for group, packed in pack_groups(rows, budget, lm.trees):
        ends = torch.stack([path[-1] for path in packed.paths]).to(lm.device)
        seen: dict[str, Tensor] = {}
        hooks = [_record(layer, f"layer {i}", ends, seen) for i, layer in enumerate(run_layers)]
        hooks += [_record(w.module, w.path, ends, seen) for w in writers]
        hooks.append(run_layers[-1].register_forward_hook(_record_output("out", ends, seen)))
        try:
            normed[group] = run_packed(lm, packed, stop=layers).last[0, ends].float().cpu()
        finally:
            for hook in hooks:
                hook.remove()
        states = [seen[f"layer {i}"] for i in range(len(run_layers))] + [seen["out"]]
        hidden[group] = torch.stack(states, dim=1)
        for writer in writers:
            if not inputs[writer.path].numel():
                inputs[writer.path] = torch.empty(len(rows), seen[writer.path].shape[-1])
            inputs[writer.path][group] = seen[writer.path]
    return Activations(hidden, inputs, normed if whole else None)


def _record(module: Any, name: str, nodes: Tensor, seen: dict[str, Tensor]) -> Any:
    """Hook that keeps a module's input at some flat nodes."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        seen[name] = x.reshape(-1, x.shape[-1])[nodes].float().cpu()

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _record_output(name: str, nodes: Tensor, seen: dict[str, Tensor]) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        seen[name] = y.reshape(-1, y.shape[-1])[nodes].float().cpu()

    return hook
