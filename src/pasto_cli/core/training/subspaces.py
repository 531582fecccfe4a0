"""Loss subspaces: in which directions of the residual stream the losses look.

A subspace is a basis with importance weights (AntiPaSTO, arXiv 2601.07473; the names are the
original's):

    taskdiff      PCA of h_cho - h_rej at the loss depth
    suppressed    PCA of what the layers add and the output embedding does not read
    logits_read   what the output embedding reads most
    write         what the writers write most
    random        seeded, the sanity baseline

Expressions such as `taskdiff & suppressed & ~logits_read` are evaluated from left to right; `&`
intersects, `& ~` takes the part that is orthogonal.

Legend: n rows (cho and rej of each pair in turn), l layers, d d_model, k columns, v vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.subspace_expression import Term

BASE_COLUMNS = 10
"""Columns of a basis before it is intersected (original)."""
KEPT_COLUMNS = 6
"""Columns kept of an intersection (original)."""
READ_COLUMNS = 256
"""Directions that count as read by the output embedding, and as written by each writer.

At most half of d_model: of a small model nothing would be left otherwise."""


class Basis(NamedTuple):
    """Orthonormal columns and how much each matters."""

    columns: Tensor
    """(d, k)."""
    importance: Tensor | None
    """(k,) or None: then intersections go by principal angles."""


class SubspaceInputs(NamedTuple):
    """What subspaces are made from, all of the clean base model."""

    hidden: Tensor
    """(n, l + 1, d) float32: residual stream at the last token of each side, before the first layer
    and after each; rows alternate cho, rej."""
    read_weight: Callable[[], Tensor]
    """Gives the output embedding (v, d); called only if the expression needs it."""
    writer_weights: Callable[[], Iterable[Tensor]]
    """Gives the dense weights (d, d_in) of all writers, one by one, since they do not fit in memory
    together; called only if the expression needs them."""


def normalise_rows(x: Tensor) -> Tensor:
    """X / (|x| + 0.01 median|x|), row by row.

    Each pair counts alike, whatever its length, but rows that are hardly more than rounding (two
    prompts that the model does not tell apart) stay small rather than become loud noise.
    """
    norm = x.norm(dim=-1, keepdim=True)  # (n, 1)
    return x / (norm + 0.01 * norm.median())


def principal_directions(x: Tensor, *, k: int, center: bool) -> tuple[Tensor, Tensor]:
    """Top right-singular vectors (d, k) of rows x (n, d), and their singular values (k,)."""
    if center:
        x = x - x.mean(0)
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    return vh[:k].T, s[:k]  # k may be more than there are: then all of them


def taskdiff(hidden: Tensor, depth: int, *, center: bool, k: int = BASE_COLUMNS) -> Basis:
    """Directions of h_cho - h_rej at the loss depth.

    Args:
        hidden: (n, l + 1, d).
        depth: Index into the l + 1 states.
        center: Take the mean difference out first, as the original does. It throws away the one
            direction that all pairs share.
        k: Columns.
    """
    difference = hidden[0::2, depth] - hidden[1::2, depth]  # (n / 2, d)
    columns, s = principal_directions(normalise_rows(difference), k=k, center=center)
    return Basis(columns, s)


def logits_read(read_weight: Tensor, k: int) -> Basis:
    """Directions that the output embedding (v, d) reads most: its top right-singular vectors."""
    # By way of the Gram matrix: (d, d) is far smaller than (v, d).
    gram = read_weight.float().T @ read_weight.float()
    values, vectors = torch.linalg.eigh(gram)  # ascending
    return Basis(vectors.flip(-1)[:, :k], values.flip(-1)[:k].clamp_min(0).sqrt())


def suppressed(hidden: Tensor, read: Basis, k: int = BASE_COLUMNS) -> Basis:
    """What layers add and the output embedding does not read.

    PCA (centred) of sum_l relu(dh_l) - sum_l relu(-dh_l), minus its projection on `logits_read`,
    with dh_l = h_{l+1} - h_l and the first tenth of the layers left out. Since relu(x) - relu(-x) =
    x the bracket is simply h_last - h_start; the name is the original's.
    """
    start = int(0.1 * (hidden.shape[1] - 1))
    bracket = hidden[:, -1] - hidden[:, start]  # (n, d)
    rest = bracket - (bracket @ read.columns) @ read.columns.T
    columns, s = principal_directions(rest, k=k, center=True)
    return Basis(columns, s.square())


def write(writer_weights: Iterable[Tensor], k: int = BASE_COLUMNS) -> Basis:
    """Top directions of sum U_256 U_256^T over all writers.

    U_256 are a writer's top left-singular vectors; their projectors are added, so that a direction
    counts for the number of writers that write to it rather than for how loud one of them is.
    """
    total = torch.zeros(())  # (d, d) from the first writer on
    for weight in writer_weights:
        w = weight.float()
        _, vectors = torch.linalg.eigh((w @ w.T).cpu())  # (d, d), ascending
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
    kept. A shared direction lies half-way between its two nearest ones: the two rotated bases are
    added, and made orthonormal by QR.

    Raises:
        PastoError: If they share none.
    """
    overlap = a.columns.T @ b.columns  # (k_a, k_b)
    weighted = a.importance is not None and b.importance is not None
    if a.importance is not None and b.importance is not None:
        weight_a = a.importance / a.importance.sum()  # (k_a,)
        weight_b = b.importance / b.importance.sum()  # (k_b,)
        overlap = weight_a[:, None] * overlap * weight_b[None]
    left, s, right = torch.linalg.svd(overlap, full_matrices=False)
    # Weighted singular values are no cosines any more: there is no threshold to hold them to.
    keep = min(k, len(s)) if weighted else min(k, int((s > 0.5).sum()))
    if keep == 0 or not torch.isfinite(s).all():
        raise PastoError(
            "the subspaces of the expression share no direction",
            "Use fewer names in subspace.expression, such as taskdiff.",
        )
    joint = (a.columns @ left + b.columns @ right.T)[:, :keep]  # (d, keep)
    return Basis(torch.linalg.qr(joint)[0], s[:keep] if weighted else None)


def without(a: Basis, b: Basis) -> Basis:
    """The part of `a` that is orthogonal to `b`, most important first; what is nearly in `b` goes.

    Raises:
        PastoError: If nothing is left.
    """
    rest = a.columns - b.columns @ (b.columns.T @ a.columns)  # (d, k_a)
    left, s, right = torch.linalg.svd(rest, full_matrices=False)
    # s are sines of angles to b: what is left of a direction within 6 degrees of b says little.
    keep = s > 0.1
    if not keep.any():
        raise PastoError(
            "a complement in the expression leaves nothing",
            "Drop the '~' term from subspace.expression.",
        )
    columns = left[:, keep]
    if a.importance is None:
        return Basis(columns, None)
    # A new column is a mixture of old ones, and as important as they are on average.
    importance = right[keep].square() @ a.importance  # (keep,)
    order = importance.argsort(descending=True)
    return Basis(columns[:, order], importance[order])


def build(
    terms: Sequence[Term],
    states: SubspaceInputs,
    *,
    rank: int,
    depth: int,
    center: bool,
    seed: int,
) -> Tensor:
    """Evaluate a parsed expression.

    Args:
        terms: What `subspace_expression.parse_subspace` returned.
        states: Activations of the clean base model.
        rank: Columns wanted.
        depth: Loss depth, as an index into the hidden states.
        center: Whether `taskdiff` takes the mean difference out first.
        seed: Seed of the subspace `random`.

    Returns:
        P (d, k), orthonormal, k <= rank (fewer where the data span less).
    """
    d = states.hidden.shape[-1]
    all_read = min(READ_COLUMNS, d // 2)
    columns, kept = max(rank, BASE_COLUMNS), max(rank, KEPT_COLUMNS)

    def named(name: str, *, whole: bool) -> Basis:
        # A complement takes out the whole subspace, an intersection looks at its top directions.
        top = all_read if whole else columns
        if name == "taskdiff":
            return taskdiff(states.hidden, depth, center=center, k=columns)
        if name == "suppressed":
            return suppressed(states.hidden, logits_read(states.read_weight(), all_read), columns)
        if name == "logits_read":
            return logits_read(states.read_weight(), top)
        if name == "write":
            return write(states.writer_weights(), top)
        return random_basis(d, columns, seed)

    basis = named(terms[0].name, whole=False)
    for term in terms[1:]:
        other = named(term.name, whole=term.complement)
        basis = without(basis, other) if term.complement else intersect(basis, other, kept)
    return torch.linalg.qr(basis.columns[:, :rank])[0]


def captured_share(basis: Tensor, difference: Tensor) -> float:
    """|P^T m| / |m|: share of the mean cho - rej direction m that lies inside P (d, k).

    The losses see nothing of a change outside P: a low share is a warning.

    Args:
        basis: P (d, k).
        difference: (n / 2, d) h_cho - h_rej of each pair.
    """
    mean = difference.mean(0)  # (d,)
    return ((mean @ basis).norm() / mean.norm().clamp_min(1e-12)).item()
