"""Which r singular directions of a module the adapter may rotate."""

import torch
from torch import Tensor

from pasto_cli.core.models.activations import Activations
from pasto_cli.core.models.residual_writers import Writer
from pasto_cli.core.steering.adapter import Factors


def choose_directions(
    kind: str, writer: Writer, factors: Factors, rank: int, states: Activations, seed: int
) -> Tensor:
    """Indices of the singular directions kept, sorted, (r,) int64; r = min(rank, directions there
    are).

    Args:
        kind: `top`: largest singular values (PiSSA, arXiv 2404.02948); `random`: seeded;
            `residual`: the original's wanda_svd_l1_trip, scored by the residual state at the
            module's layer input against U; `activation`: the same scores with the module's own
            input against V, which is what a WANDA score (arXiv 2306.11695) means.
        writer: The module.
        factors: Its full decomposition.
        rank: r.
        states: Of the clean base model.
        seed: For `random`.
    """
    total = len(factors.s)
    rank = min(rank, total)
    if kind == "top":
        return torch.arange(rank)
    if kind == "random":
        generator = torch.Generator().manual_seed(
            seed * 100_003 + writer.layer * 31 + len(writer.path)
        )
        return torch.randperm(total, generator=generator)[:rank].sort().values
    x, basis = (
        (states.hidden[:, writer.layer], factors.u)
        if kind == "residual"
        else (states.inputs[writer.path], factors.v)
    )
    return _three_rankings(x[0::2] @ basis.cpu(), x[1::2] @ basis.cpu(), factors.s.cpu(), rank)


def _three_rankings(chosen: Tensor, rejected: Tensor, s: Tensor, rank: int) -> Tensor:
    """Best by S mean|cho|, by S mean|rej| and by S |mean(cho - rej)|: r//3, r//3 and the rest,
    united.

    Where the three overlap, the union is filled up to r by the largest of the three scores.

    Args:
        chosen: (pairs, directions) states in the module's basis.
        rejected: The same.
        s: (directions,).
        rank: r.
    """
    scores = torch.stack(
        [
            s * chosen.abs().mean(0),
            s * rejected.abs().mean(0),
            s * (chosen - rejected).mean(0).abs(),
        ]
    )
    third = rank // 3
    kept: set[int] = set()
    for score, share in zip(scores, (third, third, rank - 2 * third), strict=True):
        kept.update(score.argsort(descending=True, stable=True)[:share].tolist())
    for index in scores.max(0).values.argsort(descending=True, stable=True).tolist():
        if len(kept) == rank:
            break
        kept.add(index)
    return torch.tensor(sorted(kept))
