"""llama.cpp behind pasto: a grid of positions as LoRAs that llama-server has from its start.

    GET  /lora-adapters    [{"id": 0, "path": ".../honest-plus0.50-1f2e3d4c.gguf"}, ...]
    POST /v1/completions   {"lora": [{"id": 0, "scale": 1.0}, ...], ...}

It can load none later. Changes of several dials add up, so that each dial has a grid of its own,
and any combination of their points is exact. Between points the nearest one answers. A dial of the
kind lora is linear: M(a) = a M(1), and one of its LoRAs serves every coefficient by its scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pasto_cli.core.serving.engine import Position, Refusal, Sampling
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.upstream import Json, Upstream
from pasto_cli.core.serving.upstream_engine import Place, ServedBase, UpstreamEngine


class Grid(NamedTuple):
    """What llama-server has of one dial."""

    ids: Mapping[float, int]
    """Coefficient -> number of its LoRA at the server; at least one, 0 is not among them."""
    raw: Callable[[float], float] | None
    """For a linear dial: the coefficient of training of the one that a user turns."""


class LlamaCppEngine(UpstreamEngine):
    """Decodes in llama-server.

    Args:
        upstream: The server.
        base: What it serves.
        grids: Dial -> its positions there.
        loras: Number of LoRAs that the server has, those of nobody among them.
        exact: Refuse what lies between the positions of a grid.
        limits: How much is taken on.
    """

    def __init__(
        self,
        upstream: Upstream,
        base: ServedBase,
        grids: Mapping[str, Grid],
        loras: int,
        *,
        exact: bool,
        limits: Limits,
    ) -> None:
        super().__init__(upstream, base, list(grids), limits)
        self.grids, self.loras, self.exact = grids, loras, exact

    def served(self, position: Position) -> Position:
        """See `Engine.served`."""
        found = {name: self._nearest(name, c) for name, c in position.items()}
        found = {name: c for name, c in found.items() if c != 0.0}
        if self.exact and found != dict(position):
            between = next(name for name, c in position.items() if found.get(name) != c)
            has = ", ".join(f"{between}@{c:g}" for c in sorted(self.grids[between].ids))
            raise Refusal(
                f"{between}@{position[between]:g} lies between the positions that are loaded",
                f"Ask for one of {has}, or start the server without --exact.",
                param="model",
                code="not_on_the_grid",
            )
        return found

    def _nearest(self, name: str, coefficient: float) -> float:
        grid = self.grids[name]
        if grid.raw is not None:
            return coefficient
        # Of two that are equally near the weaker one: it disturbs less.
        return min((0.0, *grid.ids), key=lambda c: (abs(c - coefficient), abs(c)))

    async def load(self, position: Position) -> None:
        """See `Engine.load`: nothing can be loaded, and what is there is ready."""

    async def place(self, position: Position) -> Place:
        """See `UpstreamEngine.place`."""
        scales = self._scales(self.served(position))
        # All of them by name: an empty list would mean what the server was started with.
        lora = [{"id": i, "scale": scales.get(i, 0.0)} for i in range(self.loras)]
        return Place({"lora": lora}, lambda: None)

    def _scales(self, position: Position) -> dict[int, float]:
        """Number of a LoRA -> its scale; all others stay at 0."""
        found = {}
        for name, c in position.items():
            grid = self.grids[name]
            if grid.raw is None:
                found[grid.ids[c]] = 1.0
            else:
                at, number = next(iter(grid.ids.items()))
                found[number] = grid.raw(c) / grid.raw(at)
        return found

    def own_fields(self, sampling: Sampling) -> Json:
        """See `UpstreamEngine.own_fields`."""
        # It tells of a token only where it tells of some alternatives.
        told = {} if sampling.logprobs is None else {"n_probs": max(1, sampling.logprobs)}
        plain = {"repeat_penalty": 1.0, "typical_p": 1.0, "dry_multiplier": 0.0}
        # llama-server finds kept prompts by their tokens alone: one that another LoRA read would do
        # for this one too.
        return {**plain, "xtc_probability": 0.0, "cache_prompt": False, **told}


def adapter_paths(upstream: Upstream) -> Sequence[str]:
    """Files of the LoRAs that a llama-server has, by their numbers.

    Raises:
        Refusal: If it cannot be asked.
    """
    found = upstream.get("/lora-adapters")
    if not isinstance(found, list):
        raise Refusal(f"the engine at {upstream.url} is no llama-server", "See --engine.")
    return [str(each.get("path", "")) for each in sorted(found, key=lambda each: each["id"])]


def slot_context(upstream: Upstream) -> int | None:
    """Tokens of a prompt and its answer that a llama-server has room for; None if it is silent."""
    try:
        settings = upstream.get("/props").get("default_generation_settings") or {}
    except (Refusal, AttributeError):
        return None
    return settings.get("n_ctx")
