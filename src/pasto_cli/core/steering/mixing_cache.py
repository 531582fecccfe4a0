"""M(a) kept by coefficient, for callers that enter and leave a steered model again and again.

A server changes its batch whenever a request comes or ends, and the same few coefficients come
back. M(a) costs a solve per module, a look-up costs nothing.

Legend: r rank, c coefficients.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from pasto_cli.core.steering.adapter import Adapter


class MixingCache:
    """Gives what `Adapter.mixing` gives, without gradients; the adapter must no longer change.

    Args:
        adapter: Whose M(a) is wanted.
        limit: Number of coefficients that are kept; the least recently used one goes first.
    """

    def __init__(self, adapter: Adapter, limit: int = 64) -> None:
        self.adapter = adapter
        self.limit = limit
        self._kept: OrderedDict[float, list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, coefficients: Sequence[float]) -> list[Tensor]:
        """(c, r, r) float32 per module."""
        missing = [a for a in coefficients if a not in self._kept]
        if missing:
            found = self.adapter.mixing(missing)
            for i, a in enumerate(missing):
                # A copy: a view would keep the other coefficients' matrices alive.
                self._kept[a] = [mix[i].clone() for mix in found]
        for a in coefficients:
            self._kept.move_to_end(a)
        each = [self._kept[a] for a in coefficients]
        # Only now: a call for more coefficients than are kept must still find all of its own.
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return [torch.stack(parts) for parts in zip(*each, strict=True)]
