"""Steering vectors, the field's usual way: one direction a layer, added to the residual stream.

Two ways to find the direction from the same contrast pairs, both from states at the last token: repeng's (PCA of the
differences; representation engineering, arXiv 2310.01405) and contrastive activation addition (their mean, arXiv 2312.06681).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pasto_cli.core.adapter import Coefficients, per_row
from pasto_cli.core.models import LoadedModel


def pca_directions(hidden: Tensor) -> Tensor:
    """Repeng's `pca_diff`: first principal component of the centred differences of each layer, signed so that + is chosen.

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


class VectorSteerer:
    """Adds coefficient times a vector to the residual stream after some layers, at every position.

    Args:
        lm: The base model.
        vectors: Layer index -> (d,).
    """

    def __init__(self, lm: LoadedModel, vectors: Mapping[int, Tensor]) -> None:
        self.lm = lm
        self.vectors = {layer: v.to(lm.device) for layer, v in vectors.items()}

    @contextmanager
    def at(self, coefficients: Coefficients) -> Iterator[None]:
        """See `Steerer.at`."""
        rows, unique = per_row(coefficients)
        if set(unique) == {0.0}:
            yield
            return
        scale = torch.tensor(unique, device=self.lm.device)[rows.to(self.lm.device) if rows is not None else slice(None)]
        hooks = [self.lm.layers[i].register_forward_hook(_add(scale[:, None, None] * v)) for i, v in self.vectors.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _add(shift: Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + shift.to(output[0].dtype), *output[1:])
        return output + shift.to(output.dtype)

    return hook
