"""Which r singular directions of a module the adapter may rotate, or a linear one starts from.

With the SVD W = U diag(S) V^T of a writer's weight (d_out, d_in), each index names a column of U, a
singular value and a column of V. An adapter rotates r of them among one another; the rest of W
stays as it is (AntiPaSTO, arXiv 2601.07473).

    kind         scored by                                       source
    top          S                                               PiSSA, arXiv 2404.02948
    random       nothing: seeded                                 the sanity baseline
    residual     S and the residual stream x at the layer's input, in the basis U
                                                                 the original's wanda_svd_l1_trip
    activation   S and the module's own input x, in the basis V  WANDA, arXiv 2306.11695

A WANDA score is |weight| times |input|. `residual` takes the residual stream for the input, which a
writer does not read but writes to; `activation` takes what the score means.

Legend: n pairs, r rank, k = min(d_out, d_in) directions there are.
"""

import torch
from torch import Tensor

from pasto_cli.core.models.activations import Activations
from pasto_cli.core.models.residual_writers import Writer
from pasto_cli.core.steering.factors import Factors


def choose_directions(
    kind: str, writer: Writer, factors: Factors, states: Activations, *, rank: int, seed: int
) -> Tensor:
    """Indices of the singular directions kept, sorted, (r,) int64; r = min(rank, k).

    Args:
        kind: `top`, `random`, `residual` or `activation`.
        writer: The module.
        factors: Its full decomposition.
        states: Activations of the clean base model; rows alternate chosen, rejected.
        rank: Number of directions, r.
        seed: Seed of `random`.
    """
    total = len(factors.s)
    rank = min(rank, total)
    if kind == "top":
        return torch.arange(rank)  # singular values come in descending order
    if kind == "random":
        # Modules of one seed differ by layer and path: they must not all keep the same indices.
        module_seed = seed * 100_003 + writer.layer * 31 + len(writer.path)
        generator = torch.Generator().manual_seed(module_seed % 2**63)  # of 64 bits, no more
        return torch.randperm(total, generator=generator)[:rank].sort().values
    if kind == "residual":
        x, basis = states.hidden[:, writer.layer], factors.u  # (2 n, d_out), (d_out, k)
    else:
        x, basis = states.inputs[writer.path], factors.v  # (2 n, d_in), (d_in, k)
    basis = basis.cpu()
    return _three_rankings(x[0::2] @ basis, x[1::2] @ basis, s=factors.s.cpu(), rank=rank)


def _three_rankings(chosen: Tensor, rejected: Tensor, *, s: Tensor, rank: int) -> Tensor:
    """The best by each of three scores, united: r // 3, r // 3 and the rest.

        S mean|cho|;  S mean|rej|;  S |mean(cho - rej)|

    Where the three overlap, the union is filled up to r by the largest of the three scores.

    Args:
        chosen: (n, k) states in the module's basis.
        rejected: (n, k).
        s: (k,) singular values.
        rank: r.
    """
    scores = torch.stack(
        [
            s * chosen.abs().mean(0),
            s * rejected.abs().mean(0),
            s * (chosen - rejected).mean(0).abs(),
        ]
    )  # (3, k)
    third = rank // 3
    kept: set[int] = set()
    for score, share in zip(scores, (third, third, rank - 2 * third), strict=True):
        # Stable: equal scores (of dead directions) must not be a matter of the machine.
        kept.update(score.argsort(descending=True, stable=True)[:share].tolist())
    for index in scores.max(0).values.argsort(descending=True, stable=True).tolist():
        if len(kept) == rank:
            break
        kept.add(index)
    return torch.tensor(sorted(kept))
