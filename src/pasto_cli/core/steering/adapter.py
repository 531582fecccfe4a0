"""The adapter: a coefficient-scaled Cayley rotation of singular directions, added to a frozen base.

For a writer with weight W = U diag(S) V^T (r directions kept), trained Theta and delta, and
coefficient a:

    A    = bound(Theta - Theta^T)                    skew-symmetric
    R(a) = (I - a A / 2)^-1 (I + a A / 2)            Cayley: orthogonal, R(-a) = R(a)^T, R(0) = I
    M(a) = R(a) diag(S + a delta) - diag(S)          M(0) = 0
    y    = base(x) + ((x V) M(a)) U^T

AntiPaSTO (arXiv 2601.07473) writes the same as x V R diag(S + a delta) U^T + x W_res^T; with the
residual weight cancelled nothing dense is stored, a quantised base stays quantised, and a = 0 is
the base bit for bit.

The change of a weight at a fixed coefficient, U M(a)^T V^T, has rank r: it is an exact LoRA, one
per coefficient.

Legend: b batch rows, t tokens, r rank, g modules of one rank, c distinct coefficients.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.residual_writers import is_conv1d
from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.steering.coefficients import Coefficients, per_row

PARTS = ("u", "s", "v", "theta", "delta")
"""Tensors of one module."""


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


def select_directions(factors: Factors, directions: Tensor) -> Factors:
    """The singular directions at some indices (r,)."""
    index = directions.to(factors.s.device)
    return Factors(
        factors.u[:, index].clone(), factors.s[index].clone(), factors.v[:, index].clone()
    )


class Rotation(nn.Module):
    """The adapter at one module: frozen factors, trained Theta and delta."""

    u: Tensor
    s: Tensor
    v: Tensor

    def __init__(self, factors: Factors, theta: Tensor, delta: Tensor) -> None:
        super().__init__()
        self.u, self.s, self.v = (nn.Buffer(f.contiguous(), persistent=True) for f in factors)
        self.theta = nn.Parameter(theta)
        self.delta = nn.Parameter(delta)


class Adapter(nn.Module):
    """All rotations of a model, with the bound that they share.

    It changes a model only inside `at` or `baked`.

    Args:
        rotations: Exact module path -> rotation.
        bound: See `bounded_skew`.
        max_angle: Radians.
    """

    def __init__(self, rotations: Mapping[str, Rotation], bound: str, max_angle: float) -> None:
        super().__init__()
        self.paths = list(rotations)
        self.rotations = nn.ModuleList(rotations.values())
        self.bound = bound
        self.max_angle = max_angle

    @classmethod
    def create(cls, kept: Mapping[str, Factors], spec: AdapterSpec, seed: int) -> "Adapter":
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

    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters())

    @contextmanager
    def at(self, model: nn.Module, coefficients: Coefficients) -> Iterator[None]:
        """Steer a model inside this context; outside, also after an exception, it is the base.

        M(a) is computed once, on entry. Gradients reach Theta and delta where the caller has them
        enabled.

        Args:
            model: The base model that the adapter was made for.
            coefficients: One number for all rows of a batch, or one per row.

        Raises:
            PastoError: If a module that the adapter changes is not there, or a coefficient is not
                finite.
        """
        rows, distinct = per_row(coefficients)
        if set(distinct) == {0.0}:  # without hooks the base is the base, bit for bit
            yield
            return
        modules = [_submodule(model, path) for path in self.paths]
        mixing = self.mixing(distinct)
        handles = [
            module.register_forward_hook(_hook(rotation, mix, rows))
            for module, (_, rotation), mix in zip(modules, self.items(), mixing, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def baked(self, model: nn.Module, coefficient: Coefficients) -> Iterator[None]:
        """Steer a model by its weights inside this context: W + U M(a)^T V^T stands in for W.

        Decoding then costs what the base costs. The base's own parameters are put back on leaving,
        so they are restored bit for bit, also after an exception. In half precision the sum is
        rounded to the dtype of the weights, where `at` adds to the output.

        Args:
            model: The base model that the adapter was made for.
            coefficient: One number for all rows.

        Raises:
            PastoError: If the base is quantised, or for more than one coefficient.
        """
        _, distinct = per_row(coefficient)
        if len(distinct) != 1:
            raise PastoError(
                "a baked model has one coefficient for all rows",
                "Leave bake out to steer each row on its own.",
            )
        if distinct[0] == 0.0:
            yield
            return
        modules: list[Any] = [_submodule(model, path) for path in self.paths]
        before = [module.weight for module in modules]
        if not all(torch.is_floating_point(w) for w in before):
            raise PastoError(
                "a quantised base cannot be baked", "Leave bake out, or load the base unquantised."
            )
        try:
            with torch.no_grad():
                mixing = self.mixing(distinct)
                for module, (_, rotation), mix in zip(modules, self.items(), mixing, strict=True):
                    module.weight = _folded(module, rotation, mix[0])
            yield
        finally:
            for module, weight in zip(modules, before, strict=True):
                module.weight = weight


def tensor_names(paths: Sequence[str]) -> list[str]:
    """Names under which `to_tensors` gives the tensors of some modules: `<module path>.<part>`."""
    return [f"{path}.{part}" for path in paths for part in PARTS]


def to_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors of an adapter by name, on the cpu and contiguous, as our files hold them."""
    return {
        f"{path}.{part}": getattr(rotation, part).detach().cpu().contiguous()
        for path, rotation in adapter.items()
        for part in PARTS
    }


def from_tensors(
    paths: Sequence[str], tensors: Mapping[str, Tensor], bound: str, max_angle: float
) -> Adapter:
    """The adapter that `to_tensors` took apart.

    Args:
        paths: Module paths, in the adapter's order.
        tensors: By name; others than those of `paths` are left alone.
        bound: See `bounded_skew`.
        max_angle: Radians.

    Raises:
        KeyError: If a tensor is missing.
    """
    rotations = {}
    for path in paths:
        u, s, v, theta, delta = (tensors[name] for name in tensor_names([path]))
        rotations[path] = Rotation(Factors(u, s, v), theta, delta)
    return Adapter(rotations, bound, max_angle)


def _folded(module: Any, rotation: Rotation, mix: Tensor) -> nn.Parameter:
    """A module's weight with U M(a)^T V^T added, M(a) = mix (r, r)."""
    weight = module.weight
    change = (rotation.v @ mix @ rotation.u.T).to(weight.device)  # (d_in, d_out)
    change = change if is_conv1d(module) else change.T
    # The sum is made in the wider dtype and rounded once.
    wide = torch.promote_types(change.dtype, weight.dtype)
    return nn.Parameter((weight.to(wide) + change).to(weight.dtype), requires_grad=False)


def _hook(rotation: Rotation, mix: Tensor, rows: Tensor | None) -> Any:
    """Forward hook that adds ((x V) M(a)) U^T to a module's output, in the dtype of x.

    Holds nothing but the factors that the adapter has anyway and M(a), (r, r) per coefficient.

    Args:
        rotation: The adapter at this module.
        mix: M(a), (c, r, r).
        rows: Index of each batch row's coefficient (b,); None where one serves all rows.
    """
    # The dtype is known when the first input comes; the casts then serve every later token.
    cast: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] = {}

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]  # (b, t, d_in)
        if x.dtype not in cast:
            spread = mix if rows is None else mix[rows.to(mix.device)]  # (b or 1, r, r)
            cast[x.dtype] = rotation.v.to(x.dtype), spread.to(x.dtype), rotation.u.T.to(x.dtype)
        v, m, u_t = cast[x.dtype]
        if x.dim() == 2 and m.shape[0] > 1 and x.shape[0] % m.shape[0] == 0:
            # Some architectures (OPT) flatten rows and positions before the MLP.
            x = x.reshape(m.shape[0], -1, x.shape[-1])  # (b t, d_in) -> (b, t, d_in)
        if m.shape[0] not in (1, x.shape[0]):
            raise PastoError(
                f"{m.shape[0]} coefficients for a batch of {x.shape[0]} rows",
                "Give one coefficient, or one per row.",
            )
        return output + ((x @ v) @ m @ u_t).reshape(output.shape).to(output.dtype)

    return add


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise PastoError(
            f"{type(model).__name__} has no module {path}",
            "The adapter was made for another architecture.",
        ) from None
