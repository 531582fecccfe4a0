"""How a low-rank change reaches a model: added to a module's output, or folded into its weight.

    y  = base(x) + ((x D) M(a)) E                 `add_change`, a forward hook
    W' = W + E^T M(a)^T D^T                       `folded`

The inner matrix M(a) is worked out once per coefficient, so that neither depends on the kind of
adapter.

Legend: b batch rows, t tokens, r rank, c distinct coefficients; D (d_in, r), E (r, d_out).
"""

from typing import Any

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import is_conv1d


def add_change(down: Tensor, mix: Tensor, up: Tensor, rows: Tensor | None) -> Any:
    """Forward hook that adds ((x D) M(a)) E to a module's output, in the dtype of x.

    Holds nothing but the factors that the adapter has anyway and M(a), (r, r) per coefficient.

    Args:
        down: D, (d_in, r).
        mix: M(a), (c, r, r).
        up: E, (r, d_out).
        rows: Index of each batch row's coefficient (b,); None where one serves all rows.
    """
    # Dtype and device are known when the first input comes; the casts then serve every later token.
    cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]  # (b, t, d_in)
        if (x.dtype, x.device) not in cast:
            spread = mix if rows is None else mix[rows.to(mix.device)]  # (b or 1, r, r)
            cast[x.dtype, x.device] = down.to(x), spread.to(x), up.to(x)
        d, m, e = cast[x.dtype, x.device]
        if x.dim() == 2 and m.shape[0] > 1 and x.shape[0] % m.shape[0] == 0:
            # Some architectures (OPT) flatten rows and positions before the MLP.
            x = x.reshape(m.shape[0], -1, x.shape[-1])  # (b t, d_in) -> (b, t, d_in)
        if m.shape[0] not in (1, x.shape[0]):
            raise PastoError(
                f"{m.shape[0]} coefficients for a batch of {x.shape[0]} rows",
                "Give one coefficient, or one per row.",
            )
        return output + ((x @ d) @ m @ e).reshape(output.shape).to(output)

    return add


def folded(module: Any, down: Tensor, mix: Tensor, up: Tensor) -> nn.Parameter:
    """A module's weight with the change D M(a) E added, M(a) = mix (r, r)."""
    weight = module.weight
    change = (down @ mix @ up).to(weight.device)  # (d_in, d_out)
    change = change if is_conv1d(module) else change.T
    # The sum is made in the wider dtype and rounded once.
    wide = torch.promote_types(change.dtype, weight.dtype)
    return nn.Parameter((weight.to(wide) + change).to(weight.dtype), requires_grad=False)
