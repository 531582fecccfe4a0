"""Time and memory of the fast path against the textbook one.

    python -m perf.bench [--recipe FILE] [--repeats 5] [--out bench.json]

Both ways run in one process, in turn and order-swapped; ratios are what counts. Peak memory is that
of a fresh process for each measurement. Writes a table and bench.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from perf import shapes
from perf.measure import Report, own_peak
from perf.processes import (
    ROOT,
    command,
    first_token,
    peak,
    process_growth,
    save_adapter,
    save_base,
)
from perf.workload import Workload

SECTIONS = ("step", "start", "evaluation", "generation", "texts", "commands", "memory", "growth")
TYPER = "import typer\napp = typer.Typer()\n@app.command()\ndef one(name: str):\n    pass\napp()"
"""The least program that typer can make: what `pasto --help` is compared with."""


@dataclass
class Bench:
    """The sections of the report, each a method of the name that `--only` takes."""

    work: Workload
    given: argparse.Namespace
    report: Report

    def step(self) -> None:
        """Loss and gradients of one batch."""
        ways = {"fast": self.work.fast_step, "plain": self.work.plain_step}
        self.report.times("step", ways, [("plain", "fast", "at least 6")], self.given.repeats)

    def start(self) -> None:
        """All that comes before the first step."""
        work = self.work
        ways = {"fast": work.fast_start, "warm": work.warm_start, "plain": work.plain_start}
        ratios = [("plain", "fast", "at least 6"), ("plain", "warm", "at least 6")]
        self.report.times("start", ways, ratios, self.given.repeats)

    def evaluation(self) -> None:
        """Answers to dilemmas: all of them against one token each, twelve against the same."""
        work = self.work
        ways = {"fast": work.fast_evaluation, "first token": work.first_token_evaluation}
        ratios = [("first token", "fast", "none: it reads less")]
        self.report.times("evaluation", ways, ratios, 2, warm_up=False)
        every, work.questions = work.questions, work.questions[:12]
        ways = {
            "fast": work.fast_evaluation,
            "plain": work.plain_evaluation,
            "1 coefficient": lambda: work.fast_evaluation([1.0]),
            "2 coefficients": lambda: work.fast_evaluation([-1.0, 1.0]),
        }
        ratios = [
            ("plain", "fast", "at least 5"),
            ("2 coefficients", "1 coefficient", "at most 1.4"),
        ]
        self.report.times("12 questions", ways, ratios, min(self.given.repeats, 3))
        work.questions = every

    def generation(self) -> None:
        """64 tokens on the base, and with the dial hooked and baked."""
        ways = {
            "base": self.work.generation(None),
            "alpha 0": self.work.generation(0.0),
            "alpha 1": self.work.generation(1.0),
            "baked": self.work.generation(1.0, bake=True),
        }
        ratios = [
            ("alpha 0", "base", "1"),
            ("alpha 1", "base", "at most 1.05"),
            ("baked", "base", "1"),
        ]
        self.report.times("generation", ways, ratios, 2 * self.given.repeats + 1)

    def texts(self) -> None:
        """Greedy answers to 96 prompts of many lengths."""
        ways = {"trees": self.work.texts(True), "equal lengths": self.work.texts(False)}
        ratios = [("equal lengths", "trees", "at least 1.5")]
        self.report.times("96 answers", ways, ratios, self.given.repeats, warm_up=False)

    def commands(self) -> None:
        """What the command line adds to typer, and `pasto generate` to a bare script."""
        ways = {
            "pasto": command([sys.executable, "-m", "pasto_cli", "--help"]),
            "typer": command([sys.executable, "-c", TYPER, "--help"]),
        }
        ratios = [("pasto", "typer", "at most 1.3")]
        self.report.times("--help", ways, ratios, 2 * self.given.repeats)
        with tempfile.TemporaryDirectory() as folder:
            ways = first_token(self.work, Path(folder))
            ratios = [("pasto", "script", "at most 1.25")]
            self.report.times("first token", ways, ratios, self.given.repeats)

    def memory(self) -> None:
        """Peaks of a step and of an evaluation; the adapter's size beside the base's."""
        given = self.given
        for what in ("step",) if given.shape else ("step", "evaluation"):
            # What an allocator keeps differs from process to process by a fifth.
            each = {
                way: sorted(
                    peak(given.recipe, given.set, given.shape, f"{way}_{what}")
                    for _ in range(given.repeats)
                )
                for way in ("fast", "plain")
            }
            print(f"peak of {what}, MiB of each process: {each}")
            mib = {way: statistics.median(values) for way, values in each.items()}
            self.report.memory(f"peak of {what}", mib, "at most 0.4" if what == "step" else "none")
        tensors = self.work.adapter.state_dict().values()
        adapter = sum(t.numel() * t.element_size() for t in tensors) / 2**20
        base = self.work.lm.model.get_memory_footprint() / 2**20
        self.report.memory("adapter", {"adapter": adapter, "base": base}, "at most 0.08")

    def growth(self) -> None:
        """How much a process grows by a dial, and by another one."""
        with tempfile.TemporaryDirectory() as folder:
            lm = save_base(self.work, Path(folder, "base"))
            save_adapter(self.work.recipe, self.work.adapter, lm, Path(folder, "adapter"))
            for quantization in ("none", "4bit"):
                mib = process_growth(Path(folder, "adapter"), quantization)
                name, base = f"growth of the process ({quantization})", mib["base"]
                another = {"another dial": mib["another"], "base": base}
                self.report.memory(name, another, "at most 0.08")
                first = {"first dial": mib["first"], "base": base}
                self.report.memory(name, first, "none: library code is touched too")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--recipe", type=Path, default=ROOT / "recipes" / "honesty" / "smollm2-135m.yaml")
    option("--set", action="append", default=[], help="a change, as in training.batch_size=4")
    option("--repeats", type=int, default=3)
    option("--dilemmas", type=int, default=50)
    option("--only", action="append", choices=SECTIONS, help="a section; may be repeated")
    option("--shape", choices=shapes.SHAPES, help="random weights of this shape as the model")
    option("--out", type=Path, default=Path("bench.json"))
    option("--peak", help="print the peak memory of one thing, as in fast_step (used by itself)")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    given = parse()
    work = Workload(given.recipe, given.set, given.dilemmas, given.shape)
    if given.peak:
        work.questions = work.questions[:12]
        getattr(work, given.peak)()
        print(own_peak())
        return
    facts = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
    }
    bench = Bench(work, given, Report())
    for name in SECTIONS:
        if given.only is None or name in given.only:
            getattr(bench, name)()
            result = {
                "machine": facts,
                "recipe": str(given.recipe),
                "shape": given.shape,
                "changes": given.set,
                "rows": bench.report.rows,
            }
            given.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
