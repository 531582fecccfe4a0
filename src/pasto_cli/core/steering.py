"""The one interface of everything that can set a coefficient on a model, and the dial that users hold."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor

from pasto_cli.core.adapter import Adapter, Coefficients
from pasto_cli.core.models import LoadedModel
from pasto_cli.errors import PastoError


class Steerer(Protocol):
    """Anything that can set a coefficient: adapter, prompt, control vector.

    Laws, tested for every implementation: coefficient 0 is the base model bit for bit; leaving the context restores the
    base bit for bit, also after an exception; rows of one batch may have coefficients of their own.
    """

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """Steer inside this context, with one coefficient or one for each row of the batch."""
        ...


def lead(steerer: Steerer, coefficient: float) -> str | None:
    """Words that a steerer puts before the user's message; None for one that changes the model instead."""
    own = getattr(steerer, "lead", None)
    return None if own is None else own(coefficient)


class AdapterSteerer:
    """An adapter on the model that it was made for."""

    def __init__(self, adapter: Adapter, lm: LoadedModel) -> None:
        self.adapter = adapter
        self.lm = lm

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Steerer.at`."""
        return self.adapter.at(self.lm.model, coefficients)

    def baked(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Adapter.baked`."""
        return self.adapter.baked(self.lm.model, coefficients)


def change(coefficients: Coefficients, f: Callable[[float], float]) -> Coefficients:
    """Each coefficient put through a function."""
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist() if coefficients.dim() else float(coefficients)
    return f(float(coefficients)) if isinstance(coefficients, int | float) else [f(float(a)) for a in coefficients]


class Mix:
    """Several adapters on one model: at 1 each has its own coefficient, at another number that many times as much.

    Their changes of a weight add up, dW = dW_A(a) + dW_B(b), in any order.

    Args:
        parts: Adapters with their own coefficients.
    """

    def __init__(self, parts: Sequence[tuple[AdapterSteerer, float]]) -> None:
        self.parts = list(parts)

    @contextmanager
    def at(self, coefficients: Coefficients) -> Iterator[None]:
        """See `Steerer.at`."""
        with ExitStack() as stack:
            for steerer, own in self.parts:
                stack.enter_context(steerer.at(change(coefficients, lambda a, own=own: a * own)))
            yield

    @contextmanager
    def baked(self, coefficients: Coefficients) -> Iterator[None]:
        """See `Adapter.baked`."""
        with ExitStack() as stack:
            for steerer, own in self.parts:
                stack.enter_context(steerer.baked(change(coefficients, lambda a, own=own: a * own)))
            yield


def attach(lm: LoadedModel, steerer: Steerer) -> None:
    """Let `steer` find the dial of a model."""
    lm.model.pasto_steerer = steerer


@contextmanager
def steer(model: Any, coefficients: Coefficients, bake: bool = False) -> Iterator[None]:
    """A model that `pasto_cli.load` returned, steered inside this context.

    Args:
        model: A transformers model with a dial attached.
        coefficients: One for all rows of a batch, or one for each.
        bake: Fold one coefficient into the weights for the time of this context: decoding then costs what the base costs.

    Raises:
        PastoError: If the model has no dial, or cannot be baked (quantised base, several coefficients).
    """
    steerer = getattr(model, "pasto_steerer", None)
    if steerer is None:
        raise PastoError("this model has no dial", "Load it with pasto_cli.load(ADAPTER).")
    with steerer.baked(coefficients) if bake else steerer.at(coefficients):
        yield
