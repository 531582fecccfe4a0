"""Time and memory of the fast path against the textbook one, in one process, in turn and
order-swapped; ratios are what counts.

    python -m perf.bench [--recipe recipes/quickstart.yaml] [--repeats 5] [--out bench.json]

Peak memory is that of a fresh process for each measurement. Writes a table and bench.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pasto_cli.base.provenance import now
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.core.evaluation.evaluator import tokenise
from pasto_cli.core.evaluation.questions import TokenisedQuestion, score_answers
from pasto_cli.core.models.devices import training_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import dense_weight, find_writers
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.prepare import prepare, tokenise_recipe
from perf import shapes
from tests.reference import plain

ROOT = Path(__file__).parent.parent
COEFFICIENTS = (-1.0, 0.0, 1.0)
TYPER = "import typer\napp = typer.Typer()\n@app.command()\ndef one(name: str):\n    pass\napp()"


class Bench:
    """A model, its pairs and an adapter, prepared once for every measurement.

    Args:
        recipe: Path of a recipe.
        changes: To the recipe, `key=value`.
        dilemmas: For the evaluation.
        shape: Of a larger model, with random weights in place of the recipe's (`shapes.SHAPES`).
    """

    def __init__(
        self, recipe: Path, changes: Sequence[str], dilemmas: int, shape: str | None = None
    ) -> None:
        self.recipe = load_recipe(recipe, changes)
        self.watch = progress.Silent()
        self.lm: LoadedModel = dials.open_model(self.recipe.model, self.watch)
        if shape:
            self.lm = shapes.random_weights(shape, self.lm)
        self.tokens = tokenise_recipe(
            make_pairs(self.recipe.pairs), self.recipe, self.lm, self.watch
        )
        self.batch = self.tokens.train[: self.recipe.training.batch_size]
        self.questions = tokenise(
            self.lm, subset(load_benchmark("mini-dilemmas"), "honesty", dilemmas, 0)
        )
        with training_precision(self.lm, self.recipe.training.precision):
            self.adapter, self.objective = prepare(self.lm, self.tokens, self.recipe, self.watch)
            self.objective.remember(self.batch)
        with torch.no_grad():
            for _, rotation in self.adapter.items():
                rotation.theta.mul_(20)  # a dial that does something

    def writers(self) -> dict[str, plain.PlainWriter]:
        """The adapter in its textbook form."""
        found = {}
        for path, r in self.adapter.items():
            module = self.lm.model.get_submodule(path)
            bias = getattr(module, "bias", None)
            factors = (r.u, r.s, r.v)
            weight = dense_weight(module).to(r.u.device)
            bias = None if bias is None else bias.detach()
            found[path] = plain.PlainWriter(
                weight,
                bias,
                factors,
                r.theta.detach(),
                r.delta.detach(),
                self.adapter.bound,
                self.adapter.max_angle,
            )
        return found

    # -- what is measured
    # ---------------------------------------------------------------------------------------------------

    def fast_step(self) -> None:
        """Loss and gradients of one batch, base side cached as in training."""
        with training_precision(self.lm, self.recipe.training.precision):
            self.objective(self.adapter, self.batch, neutral=False).total.backward()
        self.adapter.zero_grad()

    def plain_step(self) -> None:
        """The same in three padded passes."""
        layer = self.lm.layers[self.objective.depth - 1]
        basis, spec = self.objective.basis, self.recipe.losses
        writers = self.writers()
        plain.loss(
            self.lm.model, layer, writers, self.batch, basis, spec, self.objective.last_tokens
        ).backward()

    def fast_start(self) -> None:
        """Calibration, decompositions, directions, loss subspace, as `pasto train` does them;
        nothing cached."""
        with tempfile.TemporaryDirectory() as empty, cache_at(empty):
            self.warm_start()

    def warm_start(self) -> None:
        """The same on a base that was decomposed before."""
        with training_precision(self.lm, self.recipe.training.precision):
            prepare(self.lm, self.tokens, self.recipe, self.watch)

    @torch.no_grad()
    def plain_start(self) -> None:
        """Padded calibration rows with all hidden states kept, every writer decomposed."""
        rows = [
            row
            for p in self.tokens.train[: self.recipe.adapter.activation_pairs]
            for row in (p.chosen, p.rejected)
        ]
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            width = max(map(len, part))
            ids = torch.tensor(
                [row + [0] * (width - len(row)) for row in part], device=self.lm.device
            )
            mask = torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in part], device=self.lm.device
            )
            self.lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        for writer in find_writers(self.lm.model):
            torch.linalg.svd(dense_weight(writer.module), full_matrices=False)

    def fast_evaluation(self, coefficients: Sequence[float] = COEFFICIENTS) -> None:
        """Answers to the dilemmas at three coefficients, rows and coefficients in shared trees."""
        steerer = AdapterSteerer(self.adapter, self.lm)
        score_answers(
            self.lm, steerer, self.questions, coefficients, self.recipe.evaluation.node_budget
        )

    def plain_evaluation(self) -> None:
        """The same figures: a padded row for every beginning of an answer."""
        self._plain_evaluation([row for question in self.questions for row in _rows(question)])

    def first_token_evaluation(self) -> None:
        """Fewer figures: a padded row for every question, answers of one token only (as the
        original reads them)."""
        self._plain_evaluation([question.ids for question in self.questions])

    @torch.no_grad()
    def _plain_evaluation(self, rows: list[list[int]]) -> None:
        """One padded batch after another, one coefficient after another, logits of every
        position."""
        writers = self.writers()
        with plain.adapted(self.lm.model, writers):
            for a in COEFFICIENTS:
                for writer in writers.values():
                    writer.coefficient = a
                for start in range(0, len(rows), 16):
                    plain.forward(self.lm.model, self.lm.layers[0], rows[start : start + 16])

    def generation(self, coefficient: float | None, bake: bool = False) -> Callable[[], None]:
        """64 greedy tokens, on the base or at a coefficient."""
        ids = torch.tensor([self.lm.chat.prompt("Tell me about a lake.")], device=self.lm.device)

        @torch.no_grad()
        def run() -> None:
            arguments: Any = {
                "min_new_tokens": 64,
                "max_new_tokens": 64,
                "do_sample": False,
                "pad_token_id": 0,
            }
            if coefficient is None:
                self.lm.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **arguments
                )
                return
            with (self.adapter.baked if bake else self.adapter.at)(self.lm.model, coefficient):
                self.lm.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **arguments
                )

        return run


@contextmanager
def cache_at(folder: str) -> Iterator[None]:
    """Another cache folder inside this context."""
    before = os.environ.get("PASTO_CACHE")
    os.environ["PASTO_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["PASTO_CACHE"]
        else:
            os.environ["PASTO_CACHE"] = before


def _rows(question: TokenisedQuestion) -> list[list[int]]:
    stems = {way[:-1] for ways in question.answers for way in ways} | {()}
    return [[*question.ids, *stem] for stem in sorted(stems)]


class Times(NamedTuple):
    """Seconds of one way, sorted."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def in_turn(
    ways: dict[str, Callable[[], None]], repeats: int, warm_up: bool = True
) -> dict[str, Times]:
    """Run each way once unmeasured, then all of them in turn, forwards and backwards."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values() if warm_up else ():
        run()
    for repeat in range(repeats):
        names = list(ways) if repeat % 2 == 0 else list(ways)[::-1]
        for name in names:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - started)
    return {name: Times(sorted(seconds)) for name, seconds in found.items()}


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """A command in a process of its own."""

    def run() -> None:
        subprocess.run(arguments, check=True, capture_output=True)

    return run


BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[3]}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)
model.generate(**ids, max_new_tokens=1, do_sample=False)
"""
PROMPT = "Tell me about a lake."


def save_base(bench: Bench, folder: Path) -> LoadedModel:
    """The base as a folder of unquantised weights, and loaded from there."""
    bench.lm.model.save_pretrained(folder)
    bench.lm.tokenizer.save_pretrained(folder)
    spec = bench.recipe.model.model_copy(update={"source": str(folder), "quantization": "none"})
    return dials.open_model(spec, bench.watch, packing=False)


def save_adapter(bench: Bench, lm: LoadedModel, folder: Path) -> None:
    """The adapter as an artifact made for this base."""
    meta = Meta(
        format_version=1,
        created=now(),
        base=describe_base(lm, bench.adapter),
        bound=bench.recipe.adapter.bound,
        max_angle=bench.recipe.adapter.max_angle,
        largest_angle=bench.adapter.angle(),
        recipe=bench.recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={},
        personas=[],
        training={},
        certificate=None,
        reference=reference_logits(lm, bench.adapter),
        versions={},
    )
    store.save(folder, bench.adapter, meta, "")


def first_token(bench: Bench, folder: Path) -> dict[str, Callable[[], None]]:
    """One token in a fresh process: `pasto generate` with an adapter, and a script that loads the
    same weights."""
    base, run = folder / "base", folder / "adapter"
    lm = save_base(bench, base)
    save_adapter(bench, lm, run)
    dtype = str(lm.dtype).removeprefix("torch.")
    generate = [
        sys.executable,
        "-m",
        "pasto_cli",
        "generate",
        "--adapter",
        str(run),
        "--coeff",
        "1",
        "--max-new-tokens",
        "1",
    ]
    return {
        "pasto": command([*generate, PROMPT]),
        "script": command([sys.executable, "-c", BARE, str(base), dtype, PROMPT]),
    }


def own_peak() -> float:
    """MiB that this process held at most; ru_maxrss would start at what its parent held when it was
    forked."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(given: argparse.Namespace, what: str) -> float:
    """MiB at most in a fresh process that loads the model, prepares the adapter and does one
    thing."""
    code = [
        sys.executable,
        "-m",
        "perf.bench",
        "--recipe",
        str(given.recipe),
        "--dilemmas",
        "4",
        "--peak",
        what,
    ]
    code += ["--shape", given.shape] if given.shape else []
    changes = [word for change in given.set for word in ("--set", change)]
    done = subprocess.run([*code, *changes], capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def process_growth(folder: Path, quantization: str) -> dict[str, float]:
    """What `perf.growth` says in a fresh process, MiB."""
    code = [sys.executable, "-m", "perf.growth", str(folder), quantization]
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


class Report:
    """Prints rows and keeps them for bench.json."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def times(
        self,
        name: str,
        ways: dict[str, Callable[[], None]],
        ratios: Sequence[tuple[str, str, str]],
        repeats: int,
        warm_up: bool = True,
    ) -> None:
        """Measure ways in turn; print each and the ratios (way, other way, target) between
        medians."""
        found = in_turn(ways, repeats, warm_up)
        for way, t in found.items():
            print(
                f"{name:12} {way:12} median {t.median:8.3f} s   [{t.seconds[0]:.3f}, "
                f"{t.seconds[-1]:.3f}]   n = {repeats}"
            )
        compared = []
        for one, other, target in ratios:
            value = found[one].median / found[other].median
            print(f"{name:12} {one} / {other} = {value:.2f}   (target: {target})", flush=True)
            compared.append({"ratio": f"{one} / {other}", "value": value, "target": target})
        self.rows.append(
            {
                "name": name,
                "seconds": {way: t.seconds for way, t in found.items()},
                "ratios": compared,
            }
        )

    def memory(self, name: str, mib: dict[str, float], target: str) -> None:
        """Print and keep two figures in MiB."""
        (one, a), (other, b) = mib.items()
        print(
            f"{name:25} {one} {a:.1f} MiB, {other} {b:.1f} MiB: {one} / {other} = {a / b:.3f}   "
            f"(target: {target})",
            flush=True,
        )
        self.rows.append({"name": name, "mib": mib, "ratio": a / b, "target": target})


def sections(
    bench: Bench, given: argparse.Namespace, report: Report
) -> dict[str, Callable[[], None]]:
    """What can be measured, by name."""
    r = given.repeats

    def step() -> None:
        ways = {"fast": bench.fast_step, "plain": bench.plain_step}
        report.times("step", ways, [("plain", "fast", "at least 6")], r)

    def start() -> None:
        ways = {"fast": bench.fast_start, "warm": bench.warm_start, "plain": bench.plain_start}
        report.times(
            "start", ways, [("plain", "fast", "at least 6"), ("plain", "warm", "at least 6")], r
        )

    def evaluation() -> None:
        ways = {"fast": bench.fast_evaluation, "first token": bench.first_token_evaluation}
        report.times(
            "evaluation", ways, [("first token", "fast", "none: it reads less")], 2, warm_up=False
        )
        every, bench.questions = bench.questions, bench.questions[:12]
        ways = {
            "fast": bench.fast_evaluation,
            "plain": bench.plain_evaluation,
            "1 coefficient": lambda: bench.fast_evaluation([1.0]),
            "2 coefficients": lambda: bench.fast_evaluation([-1.0, 1.0]),
        }
        ratios = [
            ("plain", "fast", "at least 5"),
            ("2 coefficients", "1 coefficient", "at most 1.4"),
        ]
        report.times("12 questions", ways, ratios, min(r, 3))
        bench.questions = every

    def generation() -> None:
        ways = {
            "base": bench.generation(None),
            "alpha 0": bench.generation(0.0),
            "alpha 1": bench.generation(1.0),
            "baked": bench.generation(1.0, bake=True),
        }
        ratios = [
            ("alpha 0", "base", "1"),
            ("alpha 1", "base", "at most 1.05"),
            ("baked", "base", "1"),
        ]
        report.times("generation", ways, ratios, 2 * r + 1)

    def commands() -> None:
        ways = {
            "pasto": command([sys.executable, "-m", "pasto_cli", "--help"]),
            "typer": command([sys.executable, "-c", TYPER, "--help"]),
        }
        report.times("--help", ways, [("pasto", "typer", "at most 1.3")], 2 * r)
        with tempfile.TemporaryDirectory() as folder:
            report.times(
                "first token",
                first_token(bench, Path(folder)),
                [("pasto", "script", "at most 1.25")],
                r,
            )

    def memory() -> None:
        for what in ("step",) if given.shape else ("step", "evaluation"):
            # What an allocator keeps differs from process to process by a fifth.
            each = {
                way: sorted(peak(given, f"{way}_{what}") for _ in range(r))
                for way in ("fast", "plain")
            }
            print(f"peak of {what}, MiB of each process: {each}")
            mib = {way: statistics.median(values) for way, values in each.items()}
            report.memory(f"peak of {what}", mib, "at most 0.4" if what == "step" else "none")
        adapter = (
            sum(t.numel() * t.element_size() for t in bench.adapter.state_dict().values()) / 2**20
        )
        base = bench.lm.model.get_memory_footprint() / 2**20
        report.memory("adapter", {"adapter": adapter, "base": base}, "at most 0.08")

    def growth() -> None:
        with tempfile.TemporaryDirectory() as folder:
            lm = save_base(bench, Path(folder, "base"))
            save_adapter(bench, lm, Path(folder, "adapter"))
            for quantization in ("none", "4bit"):
                mib = process_growth(Path(folder, "adapter"), quantization)
                name = f"growth of the process ({quantization})"
                report.memory(
                    name, {"another dial": mib["another"], "base": mib["base"]}, "at most 0.08"
                )
                report.memory(
                    name,
                    {"first dial": mib["first"], "base": mib["base"]},
                    "none: library code is touched too",
                )

    every = (step, start, evaluation, generation, commands, memory, growth)
    return {measure.__name__: measure for measure in every}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="change the recipe, such as training.batch_size=4",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dilemmas", type=int, default=50)
    names = "step, start, evaluation, generation, commands, memory, growth"
    parser.add_argument("--only", action="append", help=f"a section: {names}")
    parser.add_argument(
        "--shape",
        choices=shapes.SHAPES,
        help="random weights of this shape in place of the recipe's model",
    )
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument(
        "--peak",
        help="measure the peak memory of one thing, such as fast_step (used by the command itself)",
    )
    given = parser.parse_args()
    bench = Bench(given.recipe, given.set, given.dilemmas, given.shape)
    if given.peak:
        bench.questions = bench.questions[:12]
        getattr(bench, given.peak)()
        print(own_peak())
        return
    facts = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
    }
    report = Report()
    for name, measure in sections(bench, given, report).items():
        if given.only is None or name in given.only:
            measure()
            result = {
                "machine": facts,
                "recipe": str(given.recipe),
                "shape": given.shape,
                "changes": given.set,
                "rows": report.rows,
            }
            given.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
