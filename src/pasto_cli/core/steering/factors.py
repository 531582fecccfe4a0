"""Singular directions of a weight: what every kind of adapter starts from.

    W = U diag(S) V^T        U (d_out, k), S (k,), V (d_in, k), k = min(d_out, d_in)

Which r of the k directions are kept is chosen in `core.training.directions`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Frozen singular directions of one module."""

    u: Tensor
    """(d_out, r) float32."""
    s: Tensor
    """(r,) float32."""
    v: Tensor
    """(d_in, r) float32."""


def decompose(weight: Tensor) -> Factors:
    """Full singular value decomposition of a dense weight (d_out, d_in), largest first."""
    weight = weight.float()
    if weight.shape[0] < weight.shape[1]:  # LAPACK is faster on tall matrices
        v, s, uh = torch.linalg.svd(weight.T, full_matrices=False)
        return Factors(uh.T.contiguous(), s, v.contiguous())
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return Factors(u.contiguous(), s, vh.T.contiguous())


def select_directions(factors: Factors, directions: Tensor) -> Factors:
    """The singular directions at some indices (r,)."""
    index = directions.to(factors.s.device)
    return Factors(
        factors.u[:, index].clone(), factors.s[index].clone(), factors.v[:, index].clone()
    )
