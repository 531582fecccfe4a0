"""Time and memory of the fast path against the textbook one, in one process, in turn and order-swapped; ratios are what counts.

    python -m benchmarks.bench [--recipe recipes/quickstart.yaml] [--repeats 5] [--out bench.json]

Peak memory is that of a fresh process for each measurement. Writes a table and bench.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import plain
from pasto_cli import workflows
from pasto_cli.core.answers import Question
from pasto_cli.core.models import LoadedModel, training_precision
from pasto_cli.core.steering import AdapterSteerer
from pasto_cli.core.writers import dense_weight, find_writers
from pasto_cli.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.evaluation.evaluator import evaluate, tokenise
from pasto_cli.pairs import make_pairs
from pasto_cli.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent
COEFFICIENTS = (-1.0, 0.0, 1.0)
TYPER = "import typer\napp = typer.Typer()\n@app.command()\ndef one(name: str):\n    pass\napp()"


class Bench:
    """A model, its pairs and an adapter, prepared once for every measurement.

    Args:
        recipe: Path of a recipe.
        dilemmas: For the evaluation.
    """

    def __init__(self, recipe: Path, dilemmas: int) -> None:
        self.recipe = load_recipe(recipe, [])
        self.watch = workflows.Silent()
        self.lm: LoadedModel = workflows.open_model(self.recipe.model, self.watch)
        self.tokens = workflows.tokenise_recipe(make_pairs(self.recipe.pairs), self.recipe, self.lm, self.watch)
        self.batch = self.tokens.train[: self.recipe.training.batch_size]
        self.items = subset(load_benchmark("mini-dilemmas"), "honesty", dilemmas, 0)
        with training_precision(self.lm, self.recipe.training.precision):
            self.adapter, self.objective = workflows.prepare(self.lm, self.tokens, self.recipe, self.watch)
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
                weight, bias, factors, r.theta.detach(), r.delta.detach(), self.adapter.bound, self.adapter.max_angle
            )
        return found

    # -- what is measured ---------------------------------------------------------------------------------------------------

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
        plain.loss(self.lm.model, layer, writers, self.batch, basis, spec, self.objective.last_tokens).backward()

    def fast_start(self) -> None:
        """Calibration, decompositions, directions, loss subspace."""
        workflows.prepare(self.lm, self.tokens, self.recipe, self.watch)

    @torch.no_grad()
    def plain_start(self) -> None:
        """Padded calibration rows with all hidden states kept, every writer decomposed."""
        rows = [row for p in self.tokens.train[: self.recipe.adapter.calibration_pairs] for row in (p.chosen, p.rejected)]
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            width = max(map(len, part))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in part], device=self.lm.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part], device=self.lm.device)
            self.lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        for writer in find_writers(self.lm.model):
            torch.linalg.svd(dense_weight(writer.module), full_matrices=False)

    def fast_evaluation(self) -> None:
        """Dilemmas at three coefficients, rows and coefficients in shared trees."""
        steerer = AdapterSteerer(self.adapter, self.lm)
        evaluate(self.lm, steerer, self.items, "honesty", COEFFICIENTS, 0.05, self.recipe.evaluation.node_budget, 0, {})

    @torch.no_grad()
    def plain_evaluation(self) -> None:
        """One padded batch after another, one coefficient after another, logits of every position."""
        rows = [row for question in tokenise(self.lm, self.items) for row in _rows(question)]
        writers = self.writers()
        with plain.adapted(self.lm.model, writers):
            for a in COEFFICIENTS:
                for writer in writers.values():
                    writer.coefficient = a
                for start in range(0, len(rows), 16):
                    plain.forward(self.lm.model, self.lm.layers[0], rows[start : start + 16])

    def generation(self, coefficient: float | None) -> Callable[[], None]:
        """64 greedy tokens, on the base or at a coefficient."""
        ids = torch.tensor([self.lm.chat.prompt("Tell me about a lake.")], device=self.lm.device)

        @torch.no_grad()
        def run() -> None:
            arguments: Any = {"min_new_tokens": 64, "max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
            if coefficient is None:
                self.lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
                return
            with self.adapter.at(self.lm.model, coefficient):
                self.lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)

        return run


def _rows(question: Question) -> list[list[int]]:
    stems = {way[:-1] for ways in question.answers for way in ways} | {()}
    return [[*question.ids, *stem] for stem in sorted(stems)]


class Times(NamedTuple):
    """Seconds of one way, sorted."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def in_turn(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, Times]:
    """Run each way once unmeasured, then all of them in turn, forwards and backwards."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
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


MEMORY = ("step", "start", "evaluation")


def peak(recipe: Path, dilemmas: int, what: str) -> float:
    """MiB that one measurement adds to a fresh process that has loaded the model and prepared the adapter."""
    code = [sys.executable, "-m", "benchmarks.bench", "--recipe", str(recipe), "--dilemmas", str(dilemmas), "--peak", what]
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dilemmas", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--peak", help="measure the peak memory of one thing, such as fast_step (used by the command itself)")
    given = parser.parse_args()
    bench = Bench(given.recipe, given.dilemmas)
    if given.peak:
        getattr(bench, given.peak)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows: list[dict[str, Any]] = []

    def add(name: str, ways: dict[str, Callable[[], None]], target: str, ratio: tuple[str, str], repeats: int) -> None:
        times = in_turn(ways, repeats)
        for way, t in times.items():
            print(
                f"{name:12} {way:10} median {t.median:8.3f} s   [{t.seconds[0]:.3f}, {t.seconds[-1]:.3f}]   n = {repeats}",
                flush=True,
            )
        value = times[ratio[0]].median / times[ratio[1]].median
        print(f"{name:12} {ratio[0]} / {ratio[1]} = {value:.2f}   (target: {target})", flush=True)
        rows.append({"name": name, "seconds": {w: t.seconds for w, t in times.items()}, "ratio": value, "target": target})

    r = given.repeats
    add("step", {"fast": bench.fast_step, "plain": bench.plain_step}, "at least 6", ("plain", "fast"), r)
    add("start", {"fast": bench.fast_start, "plain": bench.plain_start}, "at least 6", ("plain", "fast"), max(2, r // 2))
    ways = {"fast": bench.fast_evaluation, "plain": bench.plain_evaluation}
    add("evaluation", ways, "at least 5", ("plain", "fast"), 1 if r < 5 else 2)
    generation = {"base": bench.generation(None), "alpha 0": bench.generation(0.0), "alpha 1": bench.generation(1.0)}
    add("generation", generation, "at most 1.05", ("alpha 1", "base"), r)
    help_ = {
        "pasto": command([sys.executable, "-m", "pasto_cli", "--help"]),
        "typer": command([sys.executable, "-c", TYPER, "--help"]),
    }
    add("--help", help_, "at most 1.3", ("pasto", "typer"), 2 * r)
    for what in MEMORY:
        fast, slow = (peak(given.recipe, given.dilemmas, f"{way}_{what}") for way in ("fast", "plain"))
        print(
            f"{'peak of ' + what:20} fast {fast:.0f} MiB, plain {slow:.0f} MiB: {fast / slow:.2f} (target, step: at most 0.4)"
        )
        rows.append({"name": f"peak of {what}", "mib": {"fast": fast, "plain": slow}, "ratio": fast / slow})
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cuda": torch.cuda.is_available()}
    given.out.write_text(json.dumps({"machine": facts, "recipe": str(given.recipe), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
