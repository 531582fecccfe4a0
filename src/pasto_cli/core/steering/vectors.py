"""Steering vectors, the field's usual way: one direction a layer, added to the residual stream.

Two ways to find the direction from the same contrast pairs, both from states at the last token:
repeng's (PCA of the differences; representation engineering, arXiv 2310.01405) and contrastive
activation addition (their mean, arXiv 2312.06681)."""

import torch
from torch import Tensor


def pca_directions(hidden: Tensor) -> Tensor:
    """Repeng's `pca_diff`: first principal component of the centred differences of each layer,
    signed so that + is chosen.

    Args:
        hidden: (n, layers + 1, d); rows alternate cho, rej.

    Returns:
        (layers, d), unit vectors; row i belongs after layer i.
    """
    vectors = []
    for layer in range(1, hidden.shape[1]):
        chosen, rejected = hidden[0::2, layer], hidden[1::2, layer]
        difference = chosen - rejected
        _, _, vh = torch.linalg.svd(difference - difference.mean(0), full_matrices=False)
        direction = vh[0]
        larger = ((chosen - rejected) @ direction > 0).float().mean()
        vectors.append(direction if larger >= 0.5 else -direction)
    return torch.stack(vectors)


def mean_directions(hidden: Tensor) -> Tensor:
    """Mean of cho - rej of each layer, not normalised: (layers, d)."""
    return (hidden[0::2, 1:] - hidden[1::2, 1:]).mean(0)
