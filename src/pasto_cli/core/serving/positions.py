"""Where a request wants the dials: `honest@-0.5`, `honest@0.5+cheerful@-0.3`, `base`, `default`.

    position = the server's default, or what the model's name says; then what the field `dial` says

A name without a coefficient stands where its server put it, at 1 if nowhere.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import LARGEST_COEFFICIENT
from pasto_cli.core.serving.engine import Refusal

BASE, DEFAULT = "base", "default"
"""Model names that are no dials."""


class Positions:
    """Reads positions for the dials of one server.

    Args:
        own: Dial -> the coefficient that the server gives it, None where it gives none.

    Raises:
        PastoError: If a dial has a name that a request could not tell from something else.
    """

    def __init__(self, own: Mapping[str, float | None]) -> None:
        for name in own:
            if name in (BASE, DEFAULT) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise PastoError(
                    f"a dial cannot be called {name!r}",
                    "Name it with letters, digits, '.', '_' and '-': pasto serve honest=RUN",
                )
        self.own = dict(own)

    def read(self, model: str | None, dial: object = None) -> dict[str, float]:
        """The position that a request asks for; dials at 0 are left out.

        Args:
            model: Its model's name, if it has one.
            dial: Its field `dial`.

        Raises:
            Refusal: For a dial that is not served, or a coefficient that is no finite number.
        """
        position = self._named(model or DEFAULT)
        if dial is not None:
            if not isinstance(dial, dict):
                raise Refusal(
                    f"dial is {dial!r}",
                    'Write an object of names and coefficients: {"honest": -0.5}',
                    param="dial",
                )
            for name, value in dial.items():
                position[self._known(str(name), "dial")] = _number(str(name), value, "dial")
        return {name: c for name, c in position.items() if c != 0.0}

    def _named(self, model: str) -> dict[str, float]:
        if model == BASE:
            return {}
        if model == DEFAULT:
            return {name: c for name, c in self.own.items() if c is not None}
        position: dict[str, float] = {}
        # The plus of `honest@+0.5` belongs to the number.
        for part in re.split(r"(?<!@)\+", model):
            name, at, number = part.partition("@")
            self._known(name, "model")
            if name in position:
                raise Refusal(f"{model!r} names {name} twice", "Name it once.", param="model")
            own = self.own[name]
            position[name] = _number(name, number, "model") if at else (1.0 if own is None else own)
        return position

    def _known(self, name: str, param: str) -> str:
        if name not in self.own:
            served = ", ".join(self.own) or "none"
            example = f"; for instance {next(iter(self.own))}@-0.5" if self.own else ""
            raise Refusal(
                f"no dial is called {name!r}",
                f"Dials here: {served}; the model without them is {BASE!r}{example}.",
                param=param,
                code="unknown_dial",
            )
        return name


def name_of(position: Mapping[str, float]) -> str:
    """The model name that means a position: `honest@-0.5+cheerful@0.3`, `base` for none."""
    return "+".join(f"{name}@{c:g}" for name, c in position.items()) or BASE


def _number(name: str, value: Any, param: str) -> float:
    """A finite number from what a client sent."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > LARGEST_COEFFICIENT:
        what = f"beyond {LARGEST_COEFFICIENT:g}" if math.isfinite(number) else "not a finite number"
        raise Refusal(
            f"the coefficient of {name} is {value!r}, {what}",
            f"Write one from -1 to 1, such as {name}@-0.5.",
            param=param,
            code="bad_coefficient",
        )
    return number
