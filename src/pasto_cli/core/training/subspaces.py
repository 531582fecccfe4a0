"""Loss subspaces: in which directions of the residual stream the losses look.

A subspace is a basis with importance weights. Expressions such as `taskdiff & suppressed &
~logits_read` are evaluated from left to right; `&` intersects, `~` takes the orthogonal complement.

Legend: n rows (cho and rej of each pair in turn), l layers, d d_model, k columns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.subspace_expression import Term

BASE_COLUMNS = 10
"""Columns of a base before it is intersected (original)."""
KEPT_COLUMNS = 6
"""Columns kept of an intersection (original)."""
READ_COLUMNS = 256
"""Right-singular vectors of the output embedding, and directions per writer, that count as read and
written; at most half of d_model, since nothing would be left of a small model otherwise."""


class Basis(NamedTuple):
    """Orthonormal columns and how much each matters."""

    columns: Tensor
    """(d, k)."""
    importance: Tensor | None
    """(k,) or None: then intersections go by principal angles."""


class SubspaceInputs(NamedTuple):
    """What subspaces are made from: states of the clean base model at the last token of each
    side."""

    hidden: Tensor
    """(n, l + 1, d) float32: residual stream before the first layer and after each; rows alternate
    cho, rej."""
    read_weight: Callable[[], Tensor]
    """Gives the output embedding (vocab, d); called only if the expression needs it."""
    writer_weights: Callable[[], Iterable[Tensor]]
    """Gives the dense weights (d, d_in) of all writers one by one; called only if the expression
    needs them."""


def normalise_rows(x: Tensor) -> Tensor:
    """X / (|x| + 0.01 median|x|): rows of about unit length, with near-zero rows kept small."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / (norm + 0.01 * norm.median())


def principal_directions(x: Tensor, k: int, center: bool) -> tuple[Tensor, Tensor]:
    """Top right-singular vectors (d, k) of rows x (n, d), and their singular values (k,)."""
    if center:
        x = x - x.mean(0)
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    return vh[:k].T, s[:k]


def taskdiff(hidden: Tensor, depth: int, center: bool, k: int = BASE_COLUMNS) -> Basis:
    """Directions of h_cho - h_rej at the loss depth.

    Args:
        hidden: (n, l + 1, d).
        depth: Index into the l + 1 states.
        center: Take the mean difference out first, as the original does.
        k: Columns.
    """
    difference = hidden[0::2, depth] - hidden[1::2, depth]
    columns, s = principal_directions(normalise_rows(difference), k, center)
    return Basis(columns, s)


def logits_read(read_weight: Tensor, k: int) -> Basis:
    """Directions that the output embedding (vocab, d) reads most: its top right-singular
    vectors."""
    gram = (
        read_weight.float().T @ read_weight.float()
    )  # (d, d): the vocabulary is far larger than d
    values, vectors = torch.linalg.eigh(gram)
    return Basis(vectors.flip(-1)[:, :k], values.flip(-1)[:k].clamp_min(0).sqrt())


def suppressed(hidden: Tensor, read: Basis, k: int = BASE_COLUMNS) -> Basis:
    """What layers add and the output embedding does not read.

    PCA (centred) of sum_l relu(dh_l) - sum_l relu(-dh_l), minus its projection on `logits_read`,
    with dh_l = h_{l+1} - h_l and the first tenth of the layers left out. Since relu(x) - relu(-x) =
    x the bracket is simply h_last - h_start; the name is the original's."""
    start = int(0.1 * (hidden.shape[1] - 1))
    bracket = hidden[:, -1] - hidden[:, start]
    rest = bracket - (bracket @ read.columns) @ read.columns.T
    columns, s = principal_directions(rest, k, center=True)
    return Basis(columns, s.square())


def write(writer_weights: Iterable[Tensor], k: int = BASE_COLUMNS) -> Basis:
    """Top directions of the sum over all writers of U_256 U_256^T, U_256 a writer's top
    left-singular vectors."""
    total = torch.zeros(())
    for weight in writer_weights:
        w = weight.float()
        _, vectors = torch.linalg.eigh((w @ w.T).cpu())
        top = vectors.flip(-1)[:, : min(READ_COLUMNS, w.shape[0] // 2)]
        total = total + top @ top.T
    values, vectors = torch.linalg.eigh(total)
    return Basis(vectors.flip(-1)[:, :k], values.flip(-1)[:k].clamp_min(0))


def random_basis(d: int, k: int, seed: int) -> Basis:
    """Seeded random orthonormal columns: the sanity baseline."""
    generator = torch.Generator().manual_seed(seed)
    return Basis(torch.linalg.qr(torch.randn(d, k, generator=generator))[0], torch.ones(k))


def intersect(a: Basis, b: Basis, k: int = KEPT_COLUMNS) -> Basis:
    """Directions that two subspaces share.

    With importance weights: SVD of diag(s_a / sum s_a) V_a^T V_b diag(s_b / sum s_b). Without: SVD
    of V_a^T V_b, whose singular values are the cosines of the principal angles; those over 0.5 are
    kept. A shared direction is the QR of the two rotated bases added.

    Raises:
        PastoError: If they share none.
    """
    overlap = a.columns.T @ b.columns  # (k_a, k_b)
    weighted = a.importance is not None and b.importance is not None
    if a.importance is not None and b.importance is not None:
        overlap = (
            (a.importance / a.importance.sum())[:, None]
            * overlap
            * (b.importance / b.importance.sum())[None]
        )
    left, s, right = torch.linalg.svd(overlap, full_matrices=False)
    keep = min(k, len(s)) if weighted else min(k, int((s > 0.5).sum()))
    if keep == 0 or not torch.isfinite(s).all():
        raise PastoError(
            "the subspaces of the expression share no direction",
            "Use fewer names in subspace.expression, such as taskdiff.",
        )
    joint = (a.columns @ left + b.columns @ right.T)[:, :keep]
    return Basis(torch.linalg.qr(joint)[0], s[:keep] if weighted else None)


def without(a: Basis, b: Basis) -> Basis:
    """The part of `a` that is orthogonal to `b`, columns in their order, those nearly inside `b`
    dropped."""
    rest = a.columns - b.columns @ (b.columns.T @ a.columns)
    left, s, right = torch.linalg.svd(rest, full_matrices=False)
    keep = s > 0.1
    if not keep.any():
        raise PastoError(
            "a complement in the expression leaves nothing",
            "Drop the '~' term from subspace.expression.",
        )
    importance = (right[keep].square() @ a.importance) if a.importance is not None else None
    columns = left[:, keep]
    if importance is None:
        return Basis(columns, None)
    order = importance.argsort(descending=True)
    return Basis(columns[:, order], importance[order])


def build(
    terms: Sequence[Term], rank: int, depth: int, center: bool, seed: int, states: SubspaceInputs
) -> Tensor:
    """Evaluate a parsed expression.

    Args:
        terms: From `expression.parse_subspace`.
        rank: Columns wanted.
        depth: Loss depth, as an index into the hidden states.
        center: For taskdiff.
        seed: For random.
        states: Of the clean base model.

    Returns:
        P (d, k), orthonormal, k <= rank (fewer where the data span less).
    """
    d = states.hidden.shape[-1]
    wide_columns = min(READ_COLUMNS, d // 2)
    columns = max(rank, BASE_COLUMNS)
    kept = max(rank, KEPT_COLUMNS)

    def named(name: str, wide: bool) -> Basis:
        if name == "taskdiff":
            return taskdiff(states.hidden, depth, center, columns)
        if name == "suppressed":
            return suppressed(
                states.hidden, logits_read(states.read_weight(), wide_columns), columns
            )
        if name == "logits_read":
            return logits_read(states.read_weight(), wide_columns if wide else columns)
        if name == "write":
            return write(states.writer_weights(), wide_columns if wide else columns)
        return random_basis(d, columns, seed)

    basis = named(terms[0].name, wide=False)
    for term in terms[1:]:
        other = named(term.name, wide=term.complement)
        basis = without(basis, other) if term.complement else intersect(basis, other, kept)
    return torch.linalg.qr(basis.columns[:, :rank])[0]


def captured_share(basis: Tensor, difference: Tensor) -> float:
    """Share |P^T m| / |m| of the mean cho - rej direction m (rows (n, d)) that lies inside P (d,
    k)."""
    mean = difference.mean(0)
    return ((mean @ basis).norm() / mean.norm().clamp_min(_TINY)).item()


_TINY = 1e-12
