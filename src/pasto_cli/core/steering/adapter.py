"""The adapter: a low-rank change of some modules, added to a frozen base and set by a coefficient.

    y = base(x) + ((x D) M(a)) E,    M(0) = 0

What D, M(a) and E are is a matter of its kind (`cayley`, `lora`; `kinds` knows them all). What
every kind keeps to stands here, and is tested for each: coefficient 0 is the base bit for bit, also
where the base is quantised; leaving a context restores the base; rows of a batch may have
coefficients of their own; the tensors alone, with a recipe's word on bounds, make it again.

The change of a weight at a fixed coefficient, E^T M(a)^T D^T, has rank r: it is an exact LoRA.

Legend: r rank, c distinct coefficients; D (d_in, r), M(a) (r, r), E (r, d_out).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import is_plain
from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.steering.coefficients import Coefficients, per_row
from pasto_cli.core.steering.factors import Factors
from pasto_cli.core.steering.hooks import add_change, folded

Mixing = Callable[[Sequence[float]], list[Tensor]]
"""Gives M(a) of each module for a list of coefficients, as `Adapter.mixing` does."""


class Settings(Protocol):
    """What an adapter needs beside its tensors: a recipe's adapter section has it, pasto.json too.

    The last two are read by kinds that rotate.
    """

    @property
    def kind(self) -> str:
        """Name of the kind."""
        ...

    @property
    def bound(self) -> str | None:
        """How rotations are bounded."""
        ...

    @property
    def max_angle(self) -> float | None:
        """Degrees."""
        ...


class ModuleAdapter(nn.Module, ABC):
    """The adapter at one module."""

    PARTS: ClassVar[tuple[str, ...]]
    """Its tensors, by the names that attributes and files have."""
    EVIDENCE: ClassVar[str]
    """By what a weight that is held in another precision is known to be the right one."""

    @property
    @abstractmethod
    def down(self) -> Tensor:
        """D (d_in, r) float32."""

    @property
    @abstractmethod
    def up(self) -> Tensor:
        """E (r, d_out) float32."""

    @staticmethod
    @abstractmethod
    def shapes(d_in: int, d_out: int, rank: int) -> dict[str, tuple[int, ...]]:
        """Part -> the shape that it has at a module of these dimensions."""

    @abstractmethod
    def fits(self, module: nn.Module) -> bool:
        """Whether a module may hold, but for rounding, the weight that this was made for."""


class Adapter(nn.Module, ABC):
    """All changes of a model. It changes a model only inside `at` or `baked`.

    Args:
        paths: Exact module paths, in order.
    """

    MODULE: ClassVar[type[ModuleAdapter]]
    """What stands at each module."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self.paths = paths

    @classmethod
    @abstractmethod
    def create(cls, kept: Mapping[str, Factors], spec: AdapterSpec, seed: int) -> Self:
        """A fresh adapter, close to the base.

        Args:
            kept: Module path -> the r singular directions that were selected.
            spec: The recipe's adapter section.
            seed: Seed of the start.
        """

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Mapping[str, Tensor]], settings: Settings) -> Self:
        """An adapter from its tensors.

        Args:
            tensors: Module path -> part -> tensor.
            settings: See `Settings`.
        """

    @abstractmethod
    def items(self) -> Sequence[tuple[str, ModuleAdapter]]:
        """(module path, adapter at this module) in order."""

    @abstractmethod
    def mixing(self, coefficients: Sequence[float]) -> list[Tensor]:
        """M(a) of each module for a list of coefficients, differentiable; exactly 0 at 0.

        Returns:
            (c, r, r) float32 per module.
        """

    @abstractmethod
    def angle(self, coefficient: float = 1.0) -> float | None:
        """Largest rotation angle, degrees; None for a kind that does not rotate."""

    @abstractmethod
    def untrained(self, seed: int) -> Self:
        """One of the same modules, directions and size that points at random: a baseline."""

    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters())

    @contextmanager
    def at(
        self, model: nn.Module, coefficients: Coefficients, mixing: Mixing | None = None
    ) -> Iterator[None]:
        """Steer a model inside this context; outside, also after an exception, it is the base.

        M(a) is computed once, on entry. Gradients reach the trained tensors where the caller has
        them enabled.

        Args:
            model: The base model that the adapter was made for.
            coefficients: One number for all rows of a batch, or one per row.
            mixing: Stands in for the adapter's own, where M(a) is kept between contexts.

        Raises:
            PastoError: If a module that the adapter changes is not there, or a coefficient is not
                finite.
        """
        rows, distinct = per_row(coefficients)
        if set(distinct) == {0.0}:  # without hooks the base is the base, bit for bit
            yield
            return
        modules = [_submodule(model, path) for path in self.paths]
        found = (mixing or self.mixing)(distinct)
        handles = [
            module.register_forward_hook(add_change(own.down, mix, own.up, rows))
            for module, (_, own), mix in zip(modules, self.items(), found, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def baked(self, model: nn.Module, coefficient: Coefficients) -> Iterator[None]:
        """Steer a model by its weights inside this context: W + E^T M(a)^T D^T stands in for W.

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
        if not all(is_plain(w) for w in before):
            raise PastoError(
                "a quantised base cannot be baked", "Leave bake out, or load the base unquantised."
            )
        try:
            with torch.no_grad():
                mixing = self.mixing(distinct)
                for module, (_, own), mix in zip(modules, self.items(), mixing, strict=True):
                    module.weight = folded(module, own.down, mix[0], own.up)
            yield
        finally:
            for module, weight in zip(modules, before, strict=True):
                module.weight = weight


def to_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors by name, `<module path>.<part>`, on the cpu and contiguous, as in our files."""
    return {
        f"{path}.{part}": getattr(own, part).detach().cpu().contiguous()
        for path, own in adapter.items()
        for part in own.PARTS
    }


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise PastoError(
            f"{type(model).__name__} has no module {path}",
            "The adapter was made for another architecture.",
        ) from None
