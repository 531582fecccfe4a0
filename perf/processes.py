"""What is measured in a process of its own: commands, a first token, peaks and growth of memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pasto_cli.base.provenance import now
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.training import ImportRecord
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.workflows import dials
from perf.workload import Workload

ROOT = Path(__file__).parent.parent

BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
said = [{"role": "user", "content": sys.argv[3]}]
ids = tokenizer.apply_chat_template(
    said, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
model.generate(**ids, max_new_tokens=1, do_sample=False)
"""
PROMPT = "Tell me about a lake."


def save_base(work: Workload, folder: Path) -> LoadedModel:
    """The base as a folder of unquantised weights, and loaded from there."""
    work.lm.model.save_pretrained(folder)
    work.lm.tokenizer.save_pretrained(folder)
    spec = work.recipe.model.model_copy(update={"source": str(folder), "quantization": "none"})
    return dials.open_model(spec, work.watch, packing=False)


def save_adapter(recipe: Recipe, adapter: Adapter, lm: LoadedModel, folder: Path) -> None:
    """The adapter as an artifact made for this base."""
    meta = Meta(
        format_version=1,
        created=now(),
        base=describe_base(lm, adapter),
        bound=recipe.adapter.bound,
        max_angle=recipe.adapter.max_angle,
        largest_angle=adapter.angle(),
        recipe=recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={"train": 0, "validation": 0, "certificate": 0},
        personas=["a", "b"],
        training=ImportRecord(imported="perf"),
        certificate=None,
        reference=reference_logits(lm, adapter),
        versions={},
    )
    store.save(folder, adapter, meta, "")


def first_token(work: Workload, folder: Path) -> dict[str, Callable[[], None]]:
    """One token in a fresh process: `pasto generate` with an adapter, and a script that loads the
    same weights.
    """
    base, run = folder / "base", folder / "adapter"
    lm = save_base(work, base)
    save_adapter(work.recipe, work.adapter, lm, run)
    dtype = str(lm.dtype).removeprefix("torch.")
    generate = [sys.executable, "-m", "pasto_cli", "generate", "--adapter", str(run)]
    generate += ["--coeff", "1", "--max-new-tokens", "1"]
    return {
        "pasto": command([*generate, PROMPT]),
        "script": command([sys.executable, "-c", BARE, str(base), dtype, PROMPT]),
    }


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """A command in a process of its own."""

    def run() -> None:
        subprocess.run(arguments, check=True, capture_output=True)

    return run


def peak(recipe: Path, changes: Sequence[str], shape: str | None, what: str) -> float:
    """MiB at most of a fresh process that prepares a workload and does one thing of it."""
    code = [sys.executable, "-m", "perf.bench", "--recipe", str(recipe), "--dilemmas", "4"]
    code += ["--peak", what]
    code += ["--shape", shape] if shape else []
    code += [word for change in changes for word in ("--set", change)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def process_growth(folder: Path, quantization: str) -> dict[str, float]:
    """MiB that `perf.growth` measures in a fresh process."""
    code = [sys.executable, "-m", "perf.growth", str(folder), quantization]
    # Each thread keeps buffers of its own, which come and go: with one there are none to count.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        code, capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
