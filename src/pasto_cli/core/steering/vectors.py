"""Steering vectors, the field's usual way: one direction per layer, added to the residual stream.

Two ways to find the direction from the same contrast pairs, both from the hidden states h at the
last token of each side:

    repeng (arXiv 2310.01405)    first principal component of h_cho - h_rej, centred
    CAA (arXiv 2312.06681)       mean of h_cho - h_rej

Legend: n rows, alternately chosen and rejected (n = 2 pairs), d d_model.
"""

import torch
from torch import Tensor


def pca_directions(hidden: Tensor) -> Tensor:
    """Repeng's `pca_diff`: one unit vector per layer, signed so that + is chosen.

    Args:
        hidden: (n, layers + 1, d), as `Activations.as_reported` gives it.

    Returns:
        (layers, d); row i belongs after layer i.
    """
    vectors = []
    for layer in range(1, hidden.shape[1]):
        chosen, rejected = hidden[0::2, layer], hidden[1::2, layer]  # (pairs, d) each
        difference = chosen - rejected
        _, _, vh = torch.linalg.svd(difference - difference.mean(0), full_matrices=False)
        direction = vh[0]  # (d,)
        # A principal component has no sign; most pairs decide which end is the chosen one.
        larger = ((chosen - rejected) @ direction > 0).float().mean()
        vectors.append(direction if larger >= 0.5 else -direction)
    return torch.stack(vectors)


def mean_directions(hidden: Tensor) -> Tensor:
    """Contrastive activation addition: mean of cho - rej per layer, not normalised; (layers, d)."""
    return (hidden[0::2, 1:] - hidden[1::2, 1:]).mean(0)
