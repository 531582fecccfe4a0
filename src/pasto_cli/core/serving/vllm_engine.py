"""vLLM behind pasto: every position is an exact LoRA, loaded while vLLM runs.

    POST /v1/load_lora_adapter    {"lora_name": NAME, "lora_path": FOLDER}
    POST /v1/unload_lora_adapter  {"lora_name": NAME}
    POST /v1/completions          {"model": NAME, ...}

vLLM reads the folder itself, on its own machine. It must be started with --enable-lora, a
--max-lora-rank that is enough, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pasto_cli.core.serving.engine import Position, Refusal, Sampling
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.lora_slots import LoraSlots
from pasto_cli.core.serving.upstream import Events, Json, Upstream
from pasto_cli.core.serving.upstream_engine import Place, ServedBase, UpstreamEngine

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Exports(NamedTuple):
    """How positions become files that an upstream reads."""

    folder: Path
    """Where they are written; the upstream sees it under the same path."""
    name: Callable[[Position], str]
    """A safe name, another one for every content."""
    write: Callable[[Position, Path], None]
    """Writes a position to a path, whole or not at all."""


class VllmEngine(UpstreamEngine):
    """Decodes in vLLM.

    Args:
        upstream: The server.
        base: What it serves.
        names: The dials.
        exports: How positions become LoRAs.
        loaded: Most positions that stay loaded.
        limits: How much is taken on.

    Raises:
        Refusal: If the server cannot be reached, or serves no model.
    """

    def __init__(
        self,
        upstream: Upstream,
        base: ServedBase,
        names: Sequence[str],
        exports: Exports,
        *,
        loaded: int,
        limits: Limits,
    ) -> None:
        self.model, context = base_model(upstream)
        base = base._replace(context=min(base.context, context or base.context))
        super().__init__(upstream, base, names, limits)
        self.exports = exports
        self.loras = LoraSlots(exports.name, self._load, self._unload, loaded)

    def served(self, position: Position) -> Position:
        """See `Engine.served`: any position is exact."""
        return position

    async def load(self, position: Position) -> None:
        """See `Engine.load`."""
        if position:
            self.loras.give(await self.loras.take(position))

    async def place(self, position: Position) -> Place:
        """See `UpstreamEngine.place`."""
        if not position:
            return Place({"model": self.model}, lambda: None)
        name = await self.loras.take(position)
        return Place({"model": name}, lambda: self.loras.give(name))

    async def begin(self, body: Json, position: Position) -> tuple[Events, Place]:
        """See `UpstreamEngine.begin`; a vLLM that was restarted gets its LoRA again, once."""
        try:
            return await super().begin(body, position)
        except Refusal as error:
            if error.status != 404 or not position:
                raise
        await self.loras.reload(position)
        return await super().begin(body, position)

    def own_fields(self, sampling: Sampling) -> Json:
        """See `UpstreamEngine.own_fields`."""
        told = {} if sampling.logprobs is None else {"logprobs": sampling.logprobs}
        return {"repetition_penalty": 1.0, **told}

    def close(self) -> None:
        """See `Engine.close`: what was loaded is unloaded."""
        for name in self.loras.users:
            with suppress(Refusal):  # it may be gone already
                self.upstream.post(UNLOAD, {"lora_name": name})
            self._forget(name)
        super().close()

    async def _load(self, name: str, position: Position) -> None:
        path = self.exports.folder / name
        if not path.exists():
            await asyncio.to_thread(self.exports.write, position, path)
        try:
            await self.upstream.apost(LOAD, {"lora_name": name, "lora_path": str(path)})
        except Refusal as error:
            # A name stands for its content: whoever loaded it before loaded the same.
            if error.status == 400 and "already" in error.message:
                return
            self._forget(name)
            raise _not_loaded(error, path) from None

    async def _unload(self, name: str) -> None:
        with suppress(Refusal):  # a vLLM that was restarted has it no more
            await self.upstream.apost(UNLOAD, {"lora_name": name})
        self._forget(name)

    def _forget(self, name: str) -> None:
        shutil.rmtree(self.exports.folder / name, ignore_errors=True)


def base_model(upstream: Upstream) -> tuple[str, int | None]:
    """The name under which a server has its base, and the tokens that it takes, if it says so.

    Raises:
        Refusal: If it has none.
    """
    found = upstream.get("/v1/models")
    models = found.get("data") if isinstance(found, dict) else None
    # vLLM lists its LoRAs too, each with the base as its parent.
    own = [model for model in models or () if not model.get("parent")]
    if not own:
        raise Refusal(f"the engine at {upstream.url} serves no model", "Start it on the base.")
    return own[0]["id"], own[0].get("max_model_len")


def _not_loaded(error: Refusal, path: Path) -> Refusal:
    """Why vLLM takes no LoRA, with what to do about it."""
    if error.code == "upstream_unreachable":
        return error
    # Of the path; it says otherwise of files that it does not find.
    if error.message.endswith(("Not Found", "Method Not Allowed")):
        hint = "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        return Refusal("this vLLM takes no LoRA while it runs", hint, status=502)
    if "rank" in error.message:
        hint = "Start it with a larger --max-lora-rank; the ranks of several dials add up."
    else:
        hint = f"It must be able to read {path}: --lora-dir names a folder that both machines see."
    return Refusal(f"vLLM does not load the LoRA: {error.message}", hint, status=502)
