"""The built-in engine against transformers' `generate`, and a server under many clients.

    python -m perf.serve [--recipe FILE] [--only SECTION] [--out bench-serve.json]

one        a row of 64 tokens, and the same by `generate`; base and steered
eight      eight rows at eight coefficients, against eight rows of the base
position   a coefficient that nobody asked for before: M(a), and an export for another engine
clients    64 clients, 256 requests to `pasto serve`: each answer is the one that comes alone
memory     2,000 requests: what the server's process holds, on a tiny model

Ways run in one process, in turn and order-swapped; ratios are what counts. The dial is not trained,
but turned far enough to change texts.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import torch

from pasto_cli.base import bundled
from pasto_cli.core.artifact import export
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import find_writers, place_writers
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.serving.engine import Request, Sampling
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.transformers_engine import TransformersEngine
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.factors import select_directions
from pasto_cli.core.steering.generation import decoding
from pasto_cli.core.steering.kinds import create_adapter
from pasto_cli.core.steering.mixing_cache import MixingCache
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.core.training.svd_cache import decompose_writer
from pasto_cli.workflows import dials, progress
from perf.measure import Report
from perf.processes import ROOT, save_adapter

SECTIONS = ("one", "eight", "position", "clients", "memory")
COEFFICIENTS = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)
CLIENTS, REQUESTS = 64, 256


class Workload(NamedTuple):
    """A base and a dial that changes what it says."""

    recipe: Recipe
    lm: LoadedModel
    adapter: Adapter


def prepared(recipe: Path) -> Workload:
    """The base of a recipe, with a random adapter of the recipe's rank."""
    found = load_recipe(recipe, [])
    lm = dials.open_model(found.model, progress.Silent(), packing=False)
    spec = found.adapter.model_copy(update={"init_theta_std": 0.2, "init_delta_std": 0.02})
    where = place_writers(find_writers(lm.model), len(lm.layers), 0.1, 0.5, spec.rank)
    kept = {
        writer.path: select_directions(decompose_writer(writer), torch.arange(spec.rank))
        for writer in where
    }
    adapter = create_adapter(kept, spec, 0).requires_grad_(False)
    return Workload(found, lm, adapter)


class Bench:
    """The sections, each a method of its name.

    Args:
        work: What is served.
        given: The command line.
    """

    def __init__(self, work: Workload, given: argparse.Namespace) -> None:
        self.work, self.given, self.report = work, given, Report()
        self.kept = MixingCache(work.adapter)
        self.steerer = AdapterSteerer(work.adapter, work.lm, self.kept)

    @contextmanager
    def engine(self) -> Iterator[TransformersEngine]:
        """The engine on the model; texts run to their full length."""
        engine = TransformersEngine(self.work.lm, {"d": self.steerer}, Limits())
        engine.scheduler.ends = set()
        try:
            yield engine
        finally:
            engine.close()

    def _rows(self, number: int) -> list[list[int]]:
        """Prompts of one length, so that `generate` needs no padding."""
        texts = bundled.lines("sentiment_prompts.txt")
        rows = [self.work.lm.chat.prompt(text) for text in texts]
        return [row[-min(map(len, rows)) :] for row in rows[:number]]

    def _generate(self, rows: list[list[int]], coefficients: Sequence[float]) -> None:
        ids = torch.tensor(rows, device=self.work.lm.device)
        tokens = self.given.tokens
        length: dict[str, Any] = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        with torch.no_grad(), self.steerer.at(list(coefficients)):
            self.work.lm.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **length, **decoding(0.0)
            )

    def _decode(
        self, engine: TransformersEngine, rows: list[list[int]], coefficients: Sequence[float]
    ) -> None:
        async def one(row: list[int], c: float) -> None:
            position = {"d": c} if c else {}
            request = Request(row, Sampling(max_tokens=self.given.tokens))
            async for _ in await engine.stream(request, position):
                pass

        async def every() -> None:
            await asyncio.gather(*(one(r, c) for r, c in zip(rows, coefficients, strict=True)))

        asyncio.run(every())

    def one(self) -> None:
        """A batch of one."""
        rows = self._rows(1)
        with self.engine() as engine:
            ways: dict[str, Callable[[], None]] = {
                "engine": lambda: self._decode(engine, rows, [0.0]),
                "generate": lambda: self._generate(rows, [0.0]),
                "engine +1": lambda: self._decode(engine, rows, [1.0]),
                "generate +1": lambda: self._generate(rows, [1.0]),
            }
            target = "at most 1.05"
            ratios = [("engine", "generate", target), ("engine +1", "generate +1", target)]
            self.report.times("one row", ways, ratios, self.given.repeats)

    def eight(self) -> None:
        """Eight coefficients in one batch; equal tokens, so that seconds compare speeds."""
        rows, none = self._rows(8), [0.0] * 8
        with self.engine() as engine:
            ways: dict[str, Callable[[], None]] = {
                "eight": lambda: self._decode(engine, rows, COEFFICIENTS),
                "base": lambda: self._decode(engine, rows, none),
                "generate": lambda: self._generate(rows, none),
            }
            ratios = [("base", "eight", "at least 0.9"), ("generate", "eight", "none")]
            self.report.times("eight rows", ways, ratios, self.given.repeats)

    def position(self) -> None:
        """A new position: M(a) in this process, files for another engine."""
        fresh = iter(torch.linspace(0.1, 0.9, 1000).tolist())

        def mixing() -> None:
            self.kept([next(fresh)])

        def files() -> None:
            with tempfile.TemporaryDirectory() as folder:
                factors = export.low_rank(self.work.adapter, next(fresh))
                export.save_lora(Path(folder), self.work.lm, factors)

        ways: dict[str, Callable[[], None]] = {"M(a)": mixing, "export": files}
        self.report.times("a position", ways, [], 10)

    def clients(self) -> None:
        """Many clients at once against the same requests one by one."""
        prompts = bundled.lines("sentiment_prompts.txt")[:16]
        jobs = [(prompts[i % 16], COEFFICIENTS[i // 16 % 8]) for i in range(REQUESTS)]
        with served(self.work) as server:
            alone = {job: asyncio.run(asked(server, [job], 1))[0].text for job in set(jobs)}
            started = time.perf_counter()
            found = asyncio.run(asked(server, jobs, CLIENTS))
            seconds = time.perf_counter() - started
        other = sum(answer.text != alone[job] for answer, job in zip(found, jobs, strict=True))
        first = sorted(answer.first for answer in found)
        p50, p99 = statistics.median(first), first[int(0.99 * (len(first) - 1))]
        print(
            f"{CLIENTS} clients, {len(found)} of {REQUESTS} requests answered in {seconds:.1f} s; "
            f"{other} answers are not the one that comes alone ({len(set(alone.values()))} "
            f"different ones); first text after {p50:.2f} s (p50), {p99:.2f} s (p99)"
        )
        row = {"name": "clients", "answered": len(found), "other": other, "p50": p50, "p99": p99}
        self.report.rows.append(row)

    def memory(self) -> None:
        """What the server's process holds after 500 and after 2,000 requests, on a tiny model."""
        work = prepared(ROOT / "recipes" / "tiny.yaml")
        jobs = [("Hello.", COEFFICIENTS[i % 8]) for i in range(500)]
        with served(work) as server:
            held = []
            for _ in range(4):
                asyncio.run(asked(server, jobs, 16))
                held.append(server.resident())
        each = ", ".join(f"{mib:.1f}" for mib in held)
        print(f"memory after each 500 of 2,000 requests (tiny model): {each} MiB")
        self.report.memory(
            "server", {"2,000 requests": held[-1], "500 requests": held[0]}, "at most 1.02"
        )


class Server(NamedTuple):
    """`pasto serve` in a process of its own."""

    process: subprocess.Popen[str]
    address: str

    def resident(self) -> float:
        """MiB that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextmanager
def served(work: Workload) -> Iterator[Server]:
    """`pasto serve` on a dial, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(work.recipe, work.adapter, work.lm, Path(folder))
        command = [sys.executable, "-m", "pasto_cli", "serve", f"d={folder}", "--port", "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(
            [*command, "--json"], stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            yield Server(process, json.loads(process.stdout.readline())["address"])
        finally:
            process.terminate()
            process.wait()


class Answer(NamedTuple):
    """What a client got."""

    text: str
    first: float
    """Seconds until its first text."""


async def asked(server: Server, jobs: Sequence[tuple[str, float]], clients: int) -> list[Answer]:
    """Answers to (prompt, coefficient), in order, so many at once; greedy, 16 tokens, streamed."""
    limit = asyncio.Semaphore(clients)
    async with openai.AsyncOpenAI(
        base_url=server.address + "/v1", api_key="-", max_retries=0, timeout=3600
    ) as client:

        async def one(prompt: str, c: float) -> Answer:
            async with limit:
                started, first, text = time.perf_counter(), None, ""
                stream = await client.chat.completions.create(
                    model=f"d@{c}",
                    messages=[{"role": "user", "content": prompt}],
                    temperature=0,
                    max_tokens=16,
                    stream=True,
                )
                async for chunk in stream:
                    part = chunk.choices[0].delta.content or ""
                    if part and first is None:
                        first = time.perf_counter() - started
                    text += part
                return Answer(text, first or 0.0)

        return list(await asyncio.gather(*(one(*job) for job in jobs)))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    option("--tokens", type=int, default=64)
    option("--repeats", type=int, default=5)
    option("--only", action="append", choices=SECTIONS, help="a section; may be repeated")
    option("--out", type=Path, default=Path("bench-serve.json"))
    given = parser.parse_args()
    bench = Bench(prepared(given.recipe), given)
    for name in SECTIONS:
        if given.only is None or name in given.only:
            getattr(bench, name)()
            facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
            result = {"machine": facts, "recipe": str(given.recipe), "rows": bench.report.rows}
            given.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
