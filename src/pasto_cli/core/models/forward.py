"""One forward pass of packed rows at several coefficients: the only place where the method runs the
model.

Coefficients are rows of the batch: c coefficients times s sequences. What comes back is flat over
nodes, m = s n, so that a row's path from `tokentree.pack` indexes it whether the rows were packed
as a tree or padded."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel, Notify
from pasto_cli.core.models.tokentree import Packed, pack


class NodeStates(NamedTuple):
    """Hidden states of every node at every coefficient."""

    depth: Tensor | None
    """(c, m, d_model): residual stream after `depth` layers, if asked for."""
    last: Tensor
    """(c, m, d_model): after the final norm; `LoadedModel.head` gives logits."""


class _Enough(Exception):
    """Ends a forward pass at the layer where the caller has what it wants."""


def run(
    lm: LoadedModel,
    packed: Packed,
    rows: int = 1,
    depth: int | None = None,
    stop: int | None = None,
) -> NodeStates:
    """Run packed rows `rows` times over (one batch row for each coefficient of the steerer that is
    active).

    Args:
        lm: The model.
        packed: From `tokentree.pack`.
        rows: Number of coefficients c.
        depth: Also return the residual stream after this many layers.
        stop: Run this many layers only; `last` is then the residual stream there, without the final
            norm.

    Returns:
        Hidden states, with gradients where the caller has them enabled.
    """
    packed = packed.to(lm.device)
    batch = packed.input_ids.shape[0] * rows
    captured: list[Tensor] = []

    def capture(_module: Any, _inputs: Any, output: Any) -> None:
        captured.append(output[0] if isinstance(output, tuple) else output)

    ends: list[Tensor] = []

    def end(_module: Any, _inputs: Any, output: Any) -> None:
        ends.append(output[0] if isinstance(output, tuple) else output)
        raise _Enough

    hooks = [lm.layers[depth - 1].register_forward_hook(capture)] if depth else []
    if stop is not None and stop < len(lm.layers):
        hooks.append(lm.layers[stop - 1].register_forward_hook(end))
    try:
        with (
            torch.autocast(lm.device.type, torch.bfloat16, enabled=lm.autocast),
            contextlib.suppress(_Enough),
        ):
            output = lm.model.base_model(
                input_ids=packed.input_ids.repeat(rows, 1),
                position_ids=packed.position_ids.repeat(rows, 1),
                attention_mask=_masks(lm, packed, rows),
                use_cache=False,
            )
            ends.append(output.last_hidden_state)
    finally:
        for hook in hooks:
            hook.remove()
    (last,) = ends
    assert last.shape[0] == batch
    flat = (rows, -1, last.shape[-1])
    return NodeStates(captured[0].reshape(flat) if captured else None, last.reshape(flat))


def _masks(lm: LoadedModel, packed: Packed, rows: int) -> Any:
    """The mask in the form that the model takes: bool for SDPA, additive for eager; one for each
    kind of layer.

    Padded rows get the plain mask of real tokens, which every architecture takes.
    """
    if packed.lengths is not None:
        lengths = torch.tensor(packed.lengths, device=lm.device)[:, None]
        real = torch.arange(packed.input_ids.shape[1], device=lm.device) < lengths
        return real.long().repeat(rows, 1)
    full = (
        packed.mask.expand(-1, 1, -1, -1).repeat(rows, 1, 1, 1)
        if packed.mask.shape[0] > 1
        else packed.mask.expand(rows, -1, -1, -1)
    )
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    sliding = full
    if window and "sliding_attention" in kinds or (window and not kinds):
        # A layer with a window sees the `window` nearest ancestors, counted in depth, not in packed
        # position.
        depth = packed.position_ids
        near = (depth[:, :, None] - depth[:, None, :] < window)[:, None]
        sliding = full & (near.repeat(rows, 1, 1, 1) if near.shape[0] > 1 else near)
    forms = {"full_attention": full, "sliding_attention": sliding}
    if config._attn_implementation == "eager":
        lowest = torch.finfo(lm.dtype).min
        forms = {
            k: torch.zeros_like(v, dtype=lm.dtype).masked_fill(~v, lowest) for k, v in forms.items()
        }
    if len(kinds) > 1:
        return {kind: forms[kind] for kind in kinds}
    return forms[next(iter(kinds))] if kinds else forms["sliding_attention"]


def settle_packing(lm: LoadedModel, notify: Notify = lambda _: None) -> None:
    """Compare a tiny token tree with plain forwards; where they differ, use padded rows and say so
    once.

    Raises:
        PastoError: If not even padded rows and `LoadedModel.head` give the model's own logits.
    """
    ids = lm.chat.prompt("Say one word.")
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None) or 0
    if 0 < window <= 64:
        ids = (ids * (window // len(ids) + 2))[: window + 8]
    rows = [ids[:-2], ids, [*ids[:-2], ids[0], ids[1]]]
    with torch.no_grad():
        plain = [
            lm.model(input_ids=torch.tensor([row], device=lm.device)).logits[0, -1].float()
            for row in rows
        ]
        scale = max(p.abs().max().item() for p in plain)
        # 8-bit and half-precision layers round differently for every sequence length; a wrong mask
        # is far outside.
        exact = lm.dtype == torch.float32 and lm.spec.quantization != "8bit"
        tolerance = scale * (1e-4 if exact else 5e-2)
        for trees in (True, False):
            try:
                packed = pack(rows, tree=trees)
                states = run(lm, packed)
                ends = torch.stack([states.last[0, path[-1]] for path in packed.paths])
                error = (lm.head(ends) - torch.stack(plain)).abs().max().item()
            except (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError):
                error = float("inf")
            if error <= tolerance:
                lm.trees = trees
                if not trees:
                    notify(
                        "this attention takes no tree masks: using padded batches (slower, same "
                        "figures)"
                    )
                return
    raise PastoError(
        f"{type(lm.model).__name__}: its logits do not follow from its hidden states (off by "
        f"{error:.3g} of {scale:.3g})",
        "This architecture is not supported; please report it.",
    )
