"""The kind `lora`: a low-rank change that is linear in the coefficient (LoRA, arXiv 2106.09685).

    y = base(x) + a (x A) B,    M(a) = a I

A starts from the right singular vectors that were chosen, orthonormal, so that training begins in
the directions that `cayley` would rotate; B starts at almost nothing.

Why not B = 0, as LoRA has it: there both ends are the base and the gradient of A vanishes. B's own
does not under losses that ask for movement (likeness, monotonicity: hinges with a slope at 0); but
the projection loss is a product of the changes at +1 and -1, with no slope where both are 0, and
training would begin along the rounding of the base. With a start of 1e-4 (a weight of the base has
entries of some 1e-2) every set of losses begins, and on a tiny model with random weights nine of
ten short trainings ended lower than from 0.

Since M(a) = a M(1), one export serves any coefficient by its scale. What it gives up: no angle is
bounded, so that how much the base is disturbed is the only bound; M(-a) = -M(a), so that both
directions share one shape; and its file says nothing of the base's weights but their fingerprints.

Legend: r rank, c distinct coefficients; A (d_in, r), B (r, d_out).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.steering.adapter import Adapter, ModuleAdapter, Settings
from pasto_cli.core.steering.factors import Factors

START_STD = 1e-4
"""Standard deviation of the entries that B starts from."""


class LoraPair(ModuleAdapter):
    """The low-rank change of one module; both of its matrices are trained."""

    PARTS: ClassVar = ("a", "b")
    EVIDENCE: ClassVar = "the reference logits"

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a.contiguous())
        self.b = nn.Parameter(b.contiguous())

    @property
    def down(self) -> Tensor:
        """A (d_in, r)."""
        return self.a

    @property
    def up(self) -> Tensor:
        """B (r, d_out)."""
        return self.b

    @staticmethod
    def shapes(d_in: int, d_out: int, rank: int) -> dict[str, tuple[int, ...]]:
        """See `ModuleAdapter.shapes`."""
        return {"a": (d_in, rank), "b": (rank, d_out)}

    def fits(self, module: nn.Module) -> bool:  # noqa: ARG002
        """True: trained matrices say nothing of the weight; the reference logits have to tell."""
        return True


class LoraAdapter(Adapter):
    """All low-rank changes of a model.

    Args:
        pairs: Exact module path -> its matrices.
    """

    MODULE: ClassVar = LoraPair

    def __init__(self, pairs: Mapping[str, LoraPair]) -> None:
        super().__init__(list(pairs))
        self.pairs = nn.ModuleList(pairs.values())

    @classmethod
    def create(
        cls,
        kept: Mapping[str, Factors],
        spec: AdapterSpec,  # noqa: ARG003
        seed: int,
    ) -> Self:
        """A fresh adapter that changes next to nothing; see the module's docstring.

        Args:
            kept: Module path -> the r singular directions that were selected.
            spec: The recipe's adapter section, which has nothing to say to this kind.
            seed: Seed of B.
        """
        generator = torch.Generator().manual_seed(seed)
        pairs = {}
        for path, factors in kept.items():
            shape = (len(factors.s), len(factors.u))
            b = torch.randn(shape, generator=generator) * START_STD  # (r, d_out)
            pairs[path] = LoraPair(factors.v.clone(), b.to(factors.v))
        return cls(pairs)

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Mapping[str, Tensor]],
        settings: Settings,  # noqa: ARG003
    ) -> Self:
        """See `Adapter.restore`."""
        return cls({path: LoraPair(x["a"], x["b"]) for path, x in tensors.items()})

    def items(self) -> list[tuple[str, LoraPair]]:
        """(module path, matrices) in order."""
        return [
            (path, pair)
            for path, pair in zip(self.paths, self.pairs, strict=True)
            if isinstance(pair, LoraPair)
        ]

    def mixing(self, coefficients: Sequence[float]) -> list[Tensor]:
        """M(a) = a I of each module for a list of coefficients, (c, r, r)."""
        found = []
        for _, pair in self.items():
            scale = torch.tensor(coefficients, dtype=pair.a.dtype, device=pair.a.device)  # (c,)
            eye = torch.eye(pair.a.shape[1], dtype=pair.a.dtype, device=pair.a.device)
            found.append(scale[:, None, None] * eye)
        return found

    def angle(self, coefficient: float = 1.0) -> None:  # noqa: ARG002
        """None: nothing is rotated."""
        return None

    def untrained(self, seed: int) -> Self:
        """The same modules and A, with a random B of such a size that |A B| is what it was."""
        generator = torch.Generator().manual_seed(seed + 1_000_003)  # not that of B's own start
        pairs = {}
        for path, trained in self.items():
            a, b = trained.a.detach(), trained.b.detach()
            noise = torch.randn(b.shape, generator=generator).to(b)
            size = (a @ b).norm() / (a @ noise).norm()  # Frobenius norms of (d_in, d_out)
            pairs[path] = LoraPair(a, noise * size)
        return type(self)(pairs).requires_grad_(False)
