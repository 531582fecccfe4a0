"""The kind `cayley`: a coefficient-scaled Cayley rotation of singular directions.

For a writer with weight W = U diag(S) V^T (r directions kept), trained Theta and delta, and
coefficient a:

    A    = bound(Theta - Theta^T)                    skew-symmetric
    R(a) = (I - a A / 2)^-1 (I + a A / 2)            Cayley: orthogonal, R(-a) = R(a)^T, R(0) = I
    M(a) = R(a) diag(S + a delta) - diag(S)          M(0) = 0
    y    = base(x) + ((x V) M(a)) U^T

AntiPaSTO (arXiv 2601.07473) writes the same as x V R diag(S + a delta) U^T + x W_res^T; with the
residual weight cancelled nothing dense is stored.

Legend: r rank, g modules of one rank, c distinct coefficients.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.steering.adapter import Adapter, ModuleAdapter, Settings
from pasto_cli.core.steering.factors import Factors

LARGEST_ANGLE = 179.0
"""Degrees that a random rotation is asked for at most: the Cayley transform only approaches 180."""


def bounded_skew(theta: Tensor, bound: str, max_angle: float) -> Tensor:
    """The skew-symmetric generator A of a rotation, kept within an angle.

    Args:
        theta: (..., r, r), any square matrices.
        bound: `entrywise`: c tanh(A / c), the original's, which bounds entries and not angles;
            `spectral`: A scaled by c tanh(s / c) / s with s its spectral norm, which bounds every
            rotation angle by `max_angle`.
        max_angle: Radians in (0, pi), at coefficient 1.

    Returns:
        (..., r, r), skew-symmetric.
    """
    skew = theta - theta.mT
    c = 2.0 * math.tan(max_angle / 2.0)
    if bound == "entrywise":
        return c * torch.tanh(skew / c)
    # A zero generator stays zero: c tanh(s / c) / s tends to 1, and 0 / 0 must not be asked for.
    tiny = torch.finfo(skew.dtype).tiny
    norm = torch.linalg.matrix_norm(skew, ord=2)[..., None, None].clamp_min(tiny)  # (..., 1, 1)
    return skew * (c * torch.tanh(norm / c) / norm)


def cayley(skew: Tensor, coefficient: float) -> Tensor:
    """R(a) = (I - a A / 2)^-1 (I + a A / 2) for skew-symmetric A (..., r, r); orthogonal."""
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return cayley_minus_identity(skew, coefficient) + eye


def cayley_minus_identity(skew: Tensor, coefficient: float) -> Tensor:
    """R(a) - I = (I - a A / 2)^-1 a A, of skew-symmetric A (..., r, r).

    Solved for directly: at small coefficients a difference would round it away.
    """
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(eye - skew * (coefficient / 2.0), skew * coefficient)


def largest_angle(skew: Tensor, coefficient: float = 1.0) -> float:
    """Largest rotation angle of R(a) over all planes, degrees.

    It is 2 arctan(s a / 2), s the spectral norm of A: the Cayley map takes the eigenvalue i s of A
    to (1 + i s a / 2) / (1 - i s a / 2).
    """
    norm = torch.linalg.matrix_norm(skew.detach(), ord=2).max().item()
    return math.degrees(2.0 * math.atan(norm * abs(coefficient) / 2.0))


class Rotation(ModuleAdapter):
    """The rotation at one module: frozen factors, trained Theta and delta."""

    PARTS: ClassVar = ("u", "s", "v", "theta", "delta")
    EVIDENCE: ClassVar = "their directions"

    u: Tensor
    s: Tensor
    v: Tensor

    def __init__(self, factors: Factors, theta: Tensor, delta: Tensor) -> None:
        super().__init__()
        self.u, self.s, self.v = (nn.Buffer(f.contiguous(), persistent=True) for f in factors)
        self.theta = nn.Parameter(theta)
        self.delta = nn.Parameter(delta)

    @property
    def down(self) -> Tensor:
        """V (d_in, r)."""
        return self.v

    @property
    def up(self) -> Tensor:
        """U^T (r, d_out)."""
        return self.u.T

    @staticmethod
    def shapes(d_in: int, d_out: int, rank: int) -> dict[str, tuple[int, ...]]:
        """See `ModuleAdapter.shapes`."""
        return {
            "u": (d_out, rank),
            "s": (rank,),
            "v": (d_in, rank),
            "theta": (rank, rank),
            "delta": (rank,),
        }

    def fits(self, module: nn.Module) -> bool:
        """Whether the kept singular directions diagonalise the weight: U^T W V = diag(S)."""
        core = self.u.T @ dense_weight(module).to(self.u.device) @ self.v  # (r, r)
        return bool((core - torch.diag(self.s)).norm() < 0.2 * self.s.norm())


class CayleyAdapter(Adapter):
    """All rotations of a model, with the bound that they share.

    Args:
        rotations: Exact module path -> rotation.
        bound: See `bounded_skew`.
        max_angle: Radians.
    """

    MODULE: ClassVar = Rotation

    def __init__(self, rotations: Mapping[str, Rotation], bound: str, max_angle: float) -> None:
        super().__init__(list(rotations))
        self.rotations = nn.ModuleList(rotations.values())
        self.bound = bound
        self.max_angle = max_angle

    @classmethod
    def create(cls, kept: Mapping[str, Factors], spec: AdapterSpec, seed: int) -> Self:
        """A fresh adapter near the identity, where a symmetric start would have no gradient.

        Args:
            kept: Module path -> the r singular directions that were selected.
            spec: Bound, angle, and mean and standard deviation of the start.
            seed: Seed of the start.
        """
        generator = torch.Generator().manual_seed(seed)
        rotations = {}
        for path, factors in kept.items():
            rank = len(factors.s)
            theta, delta = torch.empty(rank, rank), torch.empty(rank)
            nn.init.trunc_normal_(theta, std=spec.init_theta_std, a=-1, b=1, generator=generator)
            mean, std = spec.init_delta_mean, spec.init_delta_std
            low, high = mean - 2 * std, mean + 2 * std
            nn.init.trunc_normal_(delta, mean, std, low, high, generator=generator)
            rotations[path] = Rotation(factors, theta, delta)
        return cls(rotations, spec.bound, math.radians(spec.max_angle))

    @classmethod
    def restore(cls, tensors: Mapping[str, Mapping[str, Tensor]], settings: Settings) -> Self:
        """See `Adapter.restore`."""
        assert settings.bound is not None and settings.max_angle is not None
        rotations = {
            path: Rotation(Factors(x["u"], x["s"], x["v"]), x["theta"], x["delta"])
            for path, x in tensors.items()
        }
        return cls(rotations, settings.bound, math.radians(settings.max_angle))

    def items(self) -> list[tuple[str, Rotation]]:
        """(module path, rotation) in order."""
        return [
            (path, rotation)
            for path, rotation in zip(self.paths, self.rotations, strict=True)
            if isinstance(rotation, Rotation)
        ]

    def generators(self) -> list[tuple[list[int], Tensor]]:
        """Bounded generators A of modules of equal rank: (indices of modules, A (g, r, r)).

        Stacked, so that one batched norm and one batched solve serve all of them.
        """
        rotations = [rotation for _, rotation in self.items()]
        by_rank: dict[int, list[int]] = defaultdict(list)
        for index, rotation in enumerate(rotations):
            by_rank[rotation.theta.shape[0]].append(index)
        found = []
        for indices in by_rank.values():
            theta = torch.stack([rotations[i].theta for i in indices])  # (g, r, r)
            found.append((indices, bounded_skew(theta, self.bound, self.max_angle)))
        return found

    def mixing(self, coefficients: Sequence[float]) -> list[Tensor]:
        """M(a) of each module for a list of coefficients, differentiable in Theta and delta.

        One solve serves +a and -a, since R(-a) = R(a)^T; coefficient 0 gives exact zeros without a
        solve.

        Returns:
            (c, r, r) float32 per module.
        """
        rotations = [rotation for _, rotation in self.items()]
        result: list[Tensor] = [torch.empty(0)] * len(self.paths)
        magnitudes = sorted({abs(float(a)) for a in coefficients} - {0.0})
        for indices, skew in self.generators():
            s = torch.stack([rotations[i].s for i in indices])  # (g, r)
            delta = torch.stack([rotations[i].delta for i in indices])  # (g, r)
            solved = {a: cayley_minus_identity(skew, a) for a in magnitudes}  # (g, r, r) each
            each = []
            for a in map(float, coefficients):
                if a == 0.0:
                    each.append(torch.zeros_like(skew))
                    continue
                # M(a) = R(a) diag(S + a delta) - diag(S) with the identity taken out of R:
                # (R(a) - I) diag(S + a delta) + diag(a delta) keeps its digits at small a.
                rotation = solved[abs(a)] if a > 0 else solved[abs(a)].mT
                each.append(rotation * (s + a * delta)[:, None, :] + torch.diag_embed(a * delta))
            stacked = torch.stack(each, dim=1)  # (g, c, r, r)
            for position, index in enumerate(indices):
                result[index] = stacked[position]
        return result

    def angle(self, coefficient: float = 1.0) -> float:
        """True largest rotation angle over all modules, degrees."""
        with torch.no_grad():
            return max(largest_angle(skew, coefficient) for _, skew in self.generators())

    def fresh(self, spec: AdapterSpec, seed: int) -> Self:
        """What `create` makes of the same directions."""
        return self.create({path: Factors(x.u, x.s, x.v) for path, x in self.items()}, spec, seed)

    def untrained(self, seed: int) -> Self:
        """The same modules and directions, each turned at random by its own angle; delta 0."""
        # Not the seed itself: the adapter was drawn from it, and the first module would start from
        # the very same numbers.
        generator = torch.Generator().manual_seed(seed + 1_000_003)

        def angle(theta: Tensor) -> float:
            return largest_angle(bounded_skew(theta, self.bound, self.max_angle))

        rotations: dict[str, Rotation] = {}
        for path, trained in self.items():
            theta = trained.theta.detach()  # (r, r)
            noise = torch.randn(theta.shape, generator=generator).to(theta)
            wanted = min(angle(theta), LARGEST_ANGLE)
            size = _bisect(lambda s, noise=noise: angle(noise * s), wanted)
            factors = Factors(trained.u, trained.s, trained.v)
            rotations[path] = Rotation(factors, noise * size, torch.zeros_like(trained.delta))
        return type(self)(rotations, self.bound, self.max_angle).requires_grad_(False)


def _bisect(increasing: Callable[[float], float], wanted: float) -> float:
    """The smallest size at which an increasing function reaches a value, to 40 halvings."""
    low, high = 0.0, 1e-3
    # The bound saturates: past a size of 1000 no more angle is to be had.
    while increasing(high) < wanted and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < wanted else (low, middle)
    return high
