"""Steerers: the one interface of everything that can set a coefficient on a model.

    Steerer            the protocol
    AdapterSteerer     an adapter on its base model
    Mix                several adapters at once
    VectorSteerer      a vector added to the residual stream (repeng, CAA; see `vectors`)
    PromptSteerer      words before the user's message
    Scaled             another steerer in another unit
    NoOpSteerer        the base model

`steer` is the same for a transformers model that `pasto_cli.load` returned.

Legend: b batch rows, t tokens, d d_model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.adapter import Adapter, Mixing
from pasto_cli.core.steering.coefficients import Coefficients, change, per_row


class Steerer(Protocol):
    """Anything that can set a coefficient: adapter, prompt, control vector.

    Laws, tested for every implementation: coefficient 0 is the base model bit for bit; leaving the
    context restores the base bit for bit, also after an exception; rows of one batch may have
    coefficients of their own.
    """

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """Steer inside this context, with one coefficient or one per row of the batch."""
        ...

    def baked(self, coefficients: Coefficients) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `Adapter.baked`.

        Raises:
            PastoError: If it does not work by weights.
        """
        raise PastoError("only adapters can be baked into weights", "Leave bake out.")

    def prompt_prefix(self, coefficient: float) -> str | None:  # noqa: ARG002
        """Words that it puts before the user's message; None if it changes the model instead."""
        return None


class AdapterSteerer(Steerer):
    """An adapter on the model that it was made for.

    Args:
        adapter: Made for the model.
        lm: The base model.
        mixing: See `Adapter.at`; None computes M(a) on every entry, as training needs it.
    """

    def __init__(self, adapter: Adapter, lm: LoadedModel, mixing: Mixing | None = None) -> None:
        self.adapter = adapter
        self.lm = lm
        self.mixing = mixing

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Steerer.at`."""
        return self.adapter.at(self.lm.model, coefficients, self.mixing)

    def baked(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Adapter.baked`."""
        return self.adapter.baked(self.lm.model, coefficients)


class Mix(Steerer):
    """Several adapters on one model; at 1 each has its own coefficient, at c that times c.

    Their changes of a weight add up, dW = dW_A(a) + dW_B(b), in any order.

    Args:
        parts: Steerers that change weights, with their own coefficients.
    """

    def __init__(self, parts: Sequence[tuple[Steerer, float]]) -> None:
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


class VectorSteerer(Steerer):
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
        rows, distinct = per_row(coefficients)
        if set(distinct) == {0.0}:
            # Adding 0 v is not free of rounding in every dtype (-0 + 0): leave the base alone.
            yield
            return
        which = slice(None) if rows is None else rows.to(self.lm.device)
        scale = torch.tensor(distinct, device=self.lm.device)[which]  # (b,), or (1,) for all rows
        hooks = [
            self.lm.layers[i].register_forward_hook(_add(scale[:, None, None] * v))  # (b, 1, d)
            for i, v in self.vectors.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _add(shift: Tensor) -> Any:
    """Forward hook that adds (b, 1, d) to a layer's output (b, t, d)."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # some architectures return attention weights as well
            return (output[0] + shift.to(output[0]), *output[1:])
        return output + shift.to(output)

    return hook


class PromptSteerer(Steerer):
    """Steers by words: one text before the user's message at positive coefficients, another below.

    Its strength cannot be scaled: any coefficient above 0 is the same.
    """

    def __init__(self, positive: str, negative: str) -> None:
        self.positive, self.negative = positive, negative

    def prompt_prefix(self, coefficient: float) -> str:
        """What stands before the user's message."""
        if coefficient == 0:
            return ""
        return (self.positive if coefficient > 0 else self.negative) + "\n\n"

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:  # noqa: ARG002
        """The model itself is not changed."""
        return nullcontext()


class Scaled(Steerer):
    """A steerer whose +1 and -1 are other coefficients of another steerer.

    Args:
        steerer: One that changes the model; words cannot be scaled.
        up: Its coefficient at +1.
        down: Minus its coefficient at -1.
    """

    def __init__(self, steerer: Steerer, up: float, down: float) -> None:
        self.steerer, self.up, self.down = steerer, up, down

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Steerer.at`."""
        return self.steerer.at(change(coefficients, self.inner))

    def baked(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Adapter.baked`."""
        return self.steerer.baked(change(coefficients, self.inner))

    def inner(self, coefficient: float) -> float:
        """The other steerer's coefficient."""
        return coefficient * (self.up if coefficient > 0 else self.down)


class NoOpSteerer(Steerer):
    """The base model at any coefficient."""

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing."""
        return nullcontext()


def attach(lm: LoadedModel, steerer: Steerer) -> None:
    """Let `steer` find the dial of a model."""
    lm.model.pasto_steerer = steerer


@contextmanager
def steer(model: Any, coefficients: Coefficients, bake: bool = False) -> Iterator[None]:
    """A model that `pasto_cli.load` returned, steered inside this context.

    Args:
        model: A transformers model with a dial attached.
        coefficients: One for all rows of a batch, or one per row.
        bake: Fold one coefficient into the weights for the time of this context: decoding then
            costs what the base costs.

    Raises:
        PastoError: If the model has no dial, or cannot be baked (quantised base, several
            coefficients).
    """
    steerer = getattr(model, "pasto_steerer", None)
    if steerer is None:
        raise PastoError("this model has no dial", "Load it with pasto_cli.load(ADAPTER).")
    with steerer.baked(coefficients) if bake else steerer.at(coefficients):
        yield
