"""The forward pass: the only place where the method runs the model.

`hidden_states` is the loop that everything reads a model with: rows of token ids are grouped by a
node budget, packed as token trees, run at several coefficients and handed back row by row.
`run_packed` is one pass of it.

Coefficients are rows of the batch: c coefficients times s sequences, the s sequences of the first
coefficient first. What comes back is flat over nodes, m = s n, so that a row's path from
`tokentree.pack` indexes it whether the rows were packed as a tree or padded.

Legend: c coefficients, s sequences of a pass, n nodes per sequence, m = s n flat nodes, w positions
of one row.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel, Notify
from pasto_cli.core.models.low_layers import low_layers
from pasto_cli.core.models.recompute import recomputed_activations
from pasto_cli.core.models.tokentree import Packed, pack, pack_groups

Steer = Callable[[list[float]], AbstractContextManager[None]]
"""Steers the model inside a context, with one coefficient per row of the batch (`Steerer.at`)."""


class NodeStates(NamedTuple):
    """Hidden states of every node at every coefficient."""

    depth: Tensor | None
    """(c, m, d_model): residual stream after `depth` layers, if asked for."""
    last: Tensor
    """(c, m, d_model): after the final norm; `LoadedModel.head` gives logits. Narrower where the
    model projects it for its head."""


class RowStates(NamedTuple):
    """Hidden states of one row, gathered from its pass only at the positions that are asked for."""

    nodes: NodeStates
    """What the whole pass computed; shared by all rows of the pass."""
    path: Tensor
    """(length of the row,) int64, cpu: the flat node of each position."""

    def last(self, positions: slice = slice(None)) -> Tensor:
        """After the final norm, at some positions of the row: (c, w, d_model)."""
        return self.nodes.last[:, self._nodes_at(positions)]

    def depth(self, positions: slice = slice(None)) -> Tensor:
        """Residual stream at the depth asked for, at some positions of the row: (c, w, d_model)."""
        assert self.nodes.depth is not None, "hidden_states was not asked for a depth"
        return self.nodes.depth[:, self._nodes_at(positions)]

    def _nodes_at(self, positions: slice) -> Tensor:
        return self.path[positions].to(self.nodes.last.device)


def hidden_states(
    lm: LoadedModel,
    rows: Sequence[Sequence[int]],
    budget: int | None,
    *,
    steer: Steer | None = None,
    coefficients: Sequence[float] = (0.0,),
    depth: int | None = None,
) -> Iterator[tuple[int, RowStates]]:
    """Run rows of token ids through the model and yield (index of the row, its hidden states).

    Rows come in the order of their groups, not in their own. While one is being looked at the model
    is still steered, so that M(a) and its gradient are computed once for many passes: read the
    states in the loop's body, but do not run the model there. Gradients are kept where the caller
    has them enabled.

    Args:
        lm: The model.
        rows: Non-empty token lists.
        budget: Nodes of one pass; None runs all rows in one pass, in their order.
        steer: Sets the coefficients; the base model where it is left out.
        coefficients: c of them, in one forward pass.
        depth: Also keep the residual stream after this many layers.
    """
    # A tree is one sequence, so that all trees need the same coefficients per batch row; padded
    # groups need them as often as they have rows.
    packs = pack_groups(rows, budget, lm.trees)
    for sequences, alike in groupby(packs, key=lambda item: item[1].input_ids.shape[0]):
        per_batch_row = [a for a in coefficients for _ in range(sequences)]
        with steer(per_batch_row) if steer is not None else nullcontext():
            for group, packed in alike:
                nodes = run_packed(lm, packed, copies=len(coefficients), depth=depth)
                for index, path in zip(group, packed.paths, strict=True):
                    yield index, RowStates(nodes, path)


class _EarlyExit(Exception):
    """Ends a forward pass at the layer where the caller has what it wants."""


def run_packed(
    lm: LoadedModel,
    packed: Packed,
    *,
    copies: int = 1,
    depth: int | None = None,
    stop: int | None = None,
) -> NodeStates:
    """One forward pass of packed rows, with gradients where the caller has them enabled.

    Args:
        lm: The model.
        packed: From `tokentree.pack`.
        copies: How often the rows stand in the batch: once per coefficient of the active steerer.
        depth: Also return the residual stream after this many layers.
        stop: Run this many layers only; `last` is then the residual stream there, without the final
            norm.
    """
    packed = packed.to(lm.device)
    batch = packed.input_ids.shape[0] * copies
    at_depth: list[Tensor] = []
    at_end: list[Tensor] = []

    def keep_depth(_module: Any, _inputs: Any, output: Any) -> None:
        at_depth.append(output[0] if isinstance(output, tuple) else output)

    def keep_and_exit(_module: Any, _inputs: Any, output: Any) -> None:
        at_end.append(output[0] if isinstance(output, tuple) else output)
        raise _EarlyExit

    hooks = [lm.layers[depth - 1].register_forward_hook(keep_depth)] if depth else []
    if stop is not None and stop < len(lm.layers):
        hooks.append(lm.layers[stop - 1].register_forward_hook(keep_and_exit))
    try:
        with (
            low_layers(lm),
            recomputed_activations(lm.hidden_size),
            contextlib.suppress(_EarlyExit),
        ):
            positions = packed.position_ids.repeat(copies, 1)
            output = lm.trunk(
                input_ids=packed.input_ids.repeat(copies, 1),  # (c s, n)
                attention_mask=_masks(lm, packed, copies),
                use_cache=False,
                # Where they are not taken, padded rows have the model's own, which are the same.
                **({"position_ids": positions} if _takes_positions(lm) else {}),
            )
            at_end.append(output.last_hidden_state)
    finally:
        for hook in hooks:
            hook.remove()
    (last,) = at_end
    assert last.shape[0] == batch
    # Of a model on several devices, layers leave them where they stand.
    last, *others = (x.to(lm.device) for x in (last, *at_depth))
    return NodeStates(_flat(others[0], copies) if others else None, _flat(last, copies))


def _flat(states: Tensor, copies: int) -> Tensor:
    """(c s, n, d) -> (c, m, d); d is another one at the end where a model projects for its head."""
    return states.reshape(copies, -1, states.shape[-1])


def _takes_positions(lm: LoadedModel) -> bool:
    """Whether a model is told the position of each token; some count for themselves."""
    return "position_ids" in inspect.signature(lm.trunk.forward).parameters


def _masks(lm: LoadedModel, packed: Packed, copies: int) -> Any:
    """The mask in the form that the model takes.

    Padded rows get the plain mask of real tokens, which every architecture takes.
    """
    if packed.lengths is not None:
        lengths = torch.tensor(packed.lengths, device=lm.device)[:, None]  # (s, 1)
        real = torch.arange(packed.input_ids.shape[1], device=lm.device) < lengths  # (s, n)
        return real.long().repeat(copies, 1)  # (c s, n)
    return tree_masks(lm, packed.mask, packed.position_ids, packed.position_ids, copies)


def tree_masks(
    lm: LoadedModel, mask: Tensor, queries: Tensor, keys: Tensor, copies: int = 1
) -> Any:
    """A mask of a token tree in the form that the model takes: bool for SDPA, additive for eager.

    Args:
        lm: The model.
        mask: (s, 1, q, k) bool, which nodes each of q nodes may see.
        queries: (s, q) depths of those that see.
        keys: (s, k) depths of those that are seen.
        copies: How often the rows stand in the batch.

    Returns:
        One tensor, or a dict by kind of layer where the model has several kinds.
    """
    full = _repeated(mask, copies)  # (c s, 1, q, k)
    sliding = full
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window and (not kinds or "sliding_attention" in kinds):
        # A layer with a window sees the `window` nearest ancestors, counted in depth: in a packed
        # tree the neighbours of a node belong to other rows.
        near = (queries[:, :, None] - keys[:, None, :] < window)[:, None]  # (s, 1, q, k)
        sliding = full & _repeated(near, copies)
    forms = {"full_attention": full, "sliding_attention": sliding}
    if config._attn_implementation == "eager":  # adds its mask to the scores
        lowest = torch.finfo(lm.dtype).min
        forms = {
            kind: torch.zeros_like(mask, dtype=lm.dtype).masked_fill(~mask, lowest)
            for kind, mask in forms.items()
        }
    if len(kinds) > 1:
        return {kind: forms[kind] for kind in kinds}
    return forms[next(iter(kinds))] if kinds else forms["sliding_attention"]


def _repeated(mask: Tensor, copies: int) -> Tensor:
    """(s, 1, n, n) -> (c s, 1, n, n); that of a tree (s = 1) without copying it."""
    if mask.shape[0] == 1:
        return mask.expand(copies, -1, -1, -1)
    return mask.repeat(copies, 1, 1, 1)


def settle_packing(lm: LoadedModel, notify: Notify = lambda _: None) -> None:
    """Find out whether token trees are exact on a model; where not, use padded rows and say so.

    An attention kernel may ignore a 4-D mask without a word, so that a tiny tree is compared with
    plain forward passes. A state that goes from token to token (convolution, Mamba, linear
    attention) knows no tree: what stands before a node in the sequence would leak into it. Nor does
    a window that is counted in places of the sequence: a small tree fits it, a larger one does not.

    Raises:
        PastoError: If not even padded rows and `LoadedModel.head` give the model's own logits, or
            if these are not finite.
    """
    rows = _rows_that_share(lm)
    with torch.no_grad():
        plain = [
            lm.model(input_ids=torch.tensor([row], device=lm.device)).logits[0, -1].float()
            for row in rows
        ]
        scale = max(p.abs().max().item() for p in plain)
        if not math.isfinite(scale):
            raise _not_finite(lm, rows[1])
        recurrent, counts = carries_state(lm), _masks_by_place(lm)
        # 8-bit and half-precision layers round differently for every sequence length; a wrong mask
        # is far outside.
        exact = lm.dtype == torch.float32 and lm.spec.quantization != "8bit"
        tolerance = scale * (1e-4 if exact else 5e-2)
        error = float("inf")
        plain_only = recurrent or counts or not _takes_positions(lm)
        for trees in (False,) if plain_only else (True, False):
            error = _packing_error(lm, rows, torch.stack(plain), trees)
            if error <= tolerance:
                lm.trees = trees
                if not trees:
                    why = (
                        "layers of this model carry a state from token to token"
                        if recurrent
                        else "this attention takes no tree masks"
                    )
                    notify(f"{why}: using padded batches (slower, same figures)")
                return
    raise PastoError(
        f"{type(lm.model).__name__}: its logits do not follow from its hidden states (off by "
        f"{error:.3g} of {scale:.3g})",
        "This architecture is not supported; please report it.",
    )


def carries_state(lm: LoadedModel) -> bool:
    """Whether layers mix tokens by a convolution or a recurrent state, not by attention alone."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    if any(isinstance(module, nn.Conv1d) for module in lm.layers.modules()):
        return True
    kept = DynamicCache(config=lm.model.config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in kept)


def _masks_by_place(lm: LoadedModel) -> bool:
    """Whether attention has a mask of its own, a square of places, beside the one it is given."""
    return any(
        x.dtype == torch.bool and x.dim() == 4 and x.shape[-1] == x.shape[-2] > 1
        for x in lm.layers.buffers()
    )


def _not_finite(lm: LoadedModel, ids: list[int]) -> PastoError:
    """What to say of a model whose logits are not finite: the first module to blame."""
    first: list[str] = []

    def look(path: str, _module: Any, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if not first and isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            first.append(path)

    handles = [
        module.register_forward_hook(partial(look, path))
        for path, module in lm.model.named_modules()
        if path
    ]
    try:
        lm.model(input_ids=torch.tensor([ids], device=lm.device))
    finally:
        for handle in handles:
            handle.remove()
    dtype = str(lm.dtype).removeprefix("torch.")
    where = first[0] if first else "the output head"
    if lm.dtype == torch.float16:
        return PastoError(
            f"{lm.spec.source}: the output of {where} overflows in float16",
            "Set model.dtype: bfloat16, or float32 where the processor has no bfloat16.",
        )
    return PastoError(
        f"{lm.spec.source}: the output of {where} holds numbers that are not finite ({dtype})",
        "Load another revision of the model, or try model.dtype: float32.",
    )


def _rows_that_share(lm: LoadedModel) -> list[list[int]]:
    """Three rows with one beginning: a prompt, a shorter one, and one that ends otherwise."""
    ids = lm.chat.prompt("Say one word.")
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None) or 0
    if 0 < window <= 64:  # long enough to leave a short window, so that its mask is tested too
        ids = (ids * (window // len(ids) + 2))[: window + 8]
    return [ids[:-2], ids, [*ids[:-2], ids[0], ids[1]]]


def _packing_error(lm: LoadedModel, rows: list[list[int]], plain: Tensor, trees: bool) -> float:
    """Largest difference of packed logits to `plain` (rows, v); infinite where the pass fails."""
    try:
        packed = pack(rows, tree=trees)
        last = run_packed(lm, packed).last[0]  # (m, d_model)
        ends = torch.stack([last[path[-1]] for path in packed.paths])  # (rows, d_model)
        return (lm.head(ends) - plain).abs().max().item()
    except (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError):
        return float("inf")
