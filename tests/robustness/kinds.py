"""The kinds of files that are damaged, and who reads them.

A kind makes a whole example once, damages a copy of it in a folder, and reads the copy as pasto
does: by the functions behind the commands, without a command line. Whatever is read must be usable;
what is refused must be refused by a `PastoError`."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from pasto_cli.base import runs
from pasto_cli.base.provenance import now
from pasto_cli.base.statistics import Estimate
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.benchmarks.dailydilemmas import FILE, load_dailydilemmas
from pasto_cli.core.models.chat import Chat, tokenise_pairs
from pasto_cli.core.models.gguf import dequantised
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.models.residual_writers import find_writers, place_writers
from pasto_cli.core.pairs.anchors import Anchor, read_anchors, split_anchors, write_anchors
from pasto_cli.core.pairs.pairs import make_pairs, read_pairs, write_pairs
from pasto_cli.core.recipe.load import dump_recipe, load_recipe, load_stored_recipe
from pasto_cli.core.recipe.schema import AdapterSpec, ModelSpec, PairsSpec, Recipe
from pasto_cli.core.records.adapter import Calibration, Certificate, Meta
from pasto_cli.core.records.training import TrainingRecord, TrainingState
from pasto_cli.core.report.card import card
from pasto_cli.core.steering.factors import decompose, select_directions
from pasto_cli.core.steering.kinds import create_adapter
from pasto_cli.core.training import checkpoint
from pasto_cli.workflows import dials, report
from pasto_cli.workflows.progress import Silent
from tests.robustness.mutators import (
    dumps,
    mangle_bytes,
    mangle_gguf,
    mangle_json,
    mangle_safetensors,
)
from tests.support.gguf_model import header_bytes, write_gguf
from tests.support.terminal import OWN, TINY


class Kind(NamedTuple):
    """A kind of file."""

    make: Callable[[Path], Any]
    """Writes a whole example into an empty folder; what it returns goes to the other two."""
    damage: Callable[[random.Random, Path, Any], None]
    """Damages the example, which has been copied into a folder."""
    read: Callable[[Path, Any], object]
    """Reads what is in the folder, as pasto does."""
    slow: bool = False
    """Needs a model."""


# Recipes, pairs, benchmarks


def _damage_recipe(rng: random.Random, folder: Path, _: Any) -> None:
    path = folder / "recipe.yaml"
    if rng.random() < 0.5:
        data = load_recipe(TINY).model_dump(mode="json")
        path.write_bytes(dumps(mangle_json(data, rng)))  # JSON is YAML
    else:
        source = TINY.read_text() if rng.random() < 0.5 else dump_recipe(load_recipe(TINY))
        path.write_bytes(mangle_bytes(source.encode(), rng))


def _read_recipe(folder: Path, _: Any) -> None:
    path = folder / "recipe.yaml"
    load_recipe(path, ["training.epochs=1"])
    dump_recipe(load_stored_recipe(path))


def _make_pairs(folder: Path) -> None:
    spec = PairsSpec(words=("kind", "cruel"), count=16)
    write_pairs(make_pairs(spec).pairs, folder / "pairs.jsonl")


def _damage_pairs(rng: random.Random, folder: Path, _: Any) -> None:
    path = folder / "pairs.jsonl"
    if rng.random() < 0.5:
        path.write_bytes(mangle_bytes(path.read_bytes(), rng))
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = rng.randrange(len(lines))
    lines[number] = mangle_json(lines[number], rng)
    path.write_bytes(b"\n".join(map(dumps, lines)))


def _read_pairs(folder: Path, _: Any) -> None:
    found = read_pairs(folder / "pairs.jsonl")
    assert found.digest
    tokenise_pairs(found.pairs, Chat(byte_tokenizer()))


LINES = (
    {"id": "q1", "value": "candour", "question": "Is it?", "matching": "yes"},
    {
        "question": "Do you lie?\n\nChoices:\n(A) Yes\n(B) No",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    },
    {"id": "q2", "value": "candour", "question": "Which?", "choices": ["one", "two"], "right": 0},
)
ROWS = (
    "dilemma_idx,dilemma_situation,action_type,action,values_aggregated\n"
    "0,It rains.,to_do,Say so.,\"['honesty', 'care']\"\n"
    "0,It rains.,not_to_do,Say nothing.,\"['peace']\"\n"
)


def _damage_benchmark(rng: random.Random, folder: Path, _: Any) -> None:
    match rng.randrange(5):
        case 0:
            (folder / "b.yaml").write_bytes(mangle_bytes(OWN.encode(), rng))
        case 1:
            (folder / "b.yaml").write_bytes(dumps(mangle_json(yaml.safe_load(OWN), rng)))
        case 2:
            lines = [mangle_json(rng.choice(LINES), rng) for _ in range(3)]
            (folder / "b.jsonl").write_bytes(b"\n".join(map(dumps, lines)))
        case 3:
            text = b"\n".join(dumps(line) for line in LINES)
            (folder / "b.jsonl").write_bytes(mangle_bytes(text, rng))
        case _:
            (folder / FILE).write_bytes(mangle_bytes(ROWS.encode(), rng))


def _read_benchmark(folder: Path, _: Any) -> None:
    (path,) = folder.iterdir()
    if path.name == FILE:
        items = load_dailydilemmas(str(folder), []).items
    else:
        items = load_benchmark(str(path)).items
    assert all(isinstance(item.prompt, str) for item in items)


# Adapters


def _make_adapter(folder: Path) -> Any:
    lm = load_model(ModelSpec(source="random:llama", device="cpu"))
    writers = place_writers(find_writers(lm.model), len(lm.layers), 0.1, 0.5, 4)
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(4))
        for w in writers
    }
    adapter = create_adapter(kept, AdapterSpec(rank=4), 0)
    recipe = Recipe.model_validate(
        {"name": "x", "model": {"source": "random:llama"}, "pairs": {"words": ["a", "b"]}}
    )
    meta = Meta(
        format_version=1,
        created=now(),
        base=describe_base(lm, adapter),
        bound="spectral",
        max_angle=45.0,
        largest_angle=1.0,
        recipe=recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={"train": 8, "validation": 2, "certificate": 2},
        personas=["a", "b"],
        training=TrainingRecord(steps=1, best_epoch=1, best_loss=0.5, interrupted=False),
        certificate=_certificate(),
        calibration=Calibration(
            kl_p95=1.0,
            coefficients={"1": 0.5, "-1": -0.5},
            reached={"1": Estimate.point(1.0), "-1": Estimate.point(1.0)},
            quantization="none",
        ),
        reference=reference_logits(lm, adapter),
        versions={},
    )
    store.save(folder / "adapter", adapter, meta, card(meta, []))
    return lm, adapter, recipe


def _certificate() -> Certificate:
    estimate = Estimate(value=1.0, low=0.5, high=1.5, n=9)
    return Certificate(
        passed=True,
        strength={"1": estimate, "-1": estimate},
        persona_prompts={"chosen": 1.0, "rejected": -1.0},
        span_nats=0.5,
        num_suffixes=3,
        num_neutral_prompts=3,
        reason="",
    )


def _damage_meta(rng: random.Random, folder: Path, _: Any) -> None:
    path = folder / "adapter" / store.META
    if rng.random() < 0.5:
        path.write_bytes(mangle_bytes(path.read_bytes(), rng))
    else:
        path.write_bytes(dumps(mangle_json(json.loads(path.read_text()), rng)))


def _read_meta(folder: Path, _: Any) -> None:
    found = store.read_meta(folder / "adapter")
    dials.recipe_of(found, folder / "adapter")
    card(found, [])
    store.as_json(found)


def _damage_tensors(rng: random.Random, folder: Path, _: Any) -> None:
    path = folder / "adapter" / store.TENSORS
    path.write_bytes(mangle_safetensors(path.read_bytes(), rng))


def _read_tensors(folder: Path, made: Any) -> None:
    lm = made[0]
    meta = store.read_meta(folder / "adapter").model_copy(update={"tensors_sha256": None})
    adapter = store.load_adapter(folder / "adapter", meta, lm, verify=False)
    with torch.no_grad(), adapter.at(lm.model, 1.0):
        logits = lm.model(input_ids=torch.arange(40, 50)[None]).logits
    assert torch.isfinite(logits).all(), "logits that are not finite"


# Models


def _make_gguf(folder: Path) -> int:
    write_gguf(folder / "m.gguf")
    return header_bytes(folder / "m.gguf")


def _damage_gguf(rng: random.Random, folder: Path, header: int) -> None:
    path = folder / "m.gguf"
    path.write_bytes(mangle_gguf(path.read_bytes(), rng, header))


def _read_gguf(folder: Path, _: Any) -> None:
    dequantised(folder / "m.gguf", lambda _: None)


TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} "
    "[/INST]{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}",
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- endif -%}"
    "{% for m in messages %}### {{ m.role | title }}:\n{{ m.content }}\n{% endfor %}### Assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}",
)


def _damage_template(rng: random.Random, folder: Path, _: Any) -> None:
    text = mangle_bytes(rng.choice(TEMPLATES).encode(), rng)
    (folder / "chat_template.jinja").write_bytes(text)


def _read_template(folder: Path, _: Any) -> None:
    tokenizer = byte_tokenizer()
    raw = (folder / "chat_template.jinja").read_bytes()
    tokenizer.chat_template = raw.decode("utf-8", "replace")
    chat = Chat(tokenizer, "Be brief.")
    assert chat.prompt("Hello there.")


# Run folders


def _make_run(folder: Path) -> Any:
    lm, adapter, recipe = _make_adapter(folder)
    recipe = recipe.model_copy(update={"name": "run"})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    _make_pairs(folder)
    anchors = [Anchor(f"What is {i}?", "own") for i in range(20)]
    write_anchors(split_anchors(anchors, 0.3, 0), folder / "anchors.jsonl")
    step = {
        **{"epoch": 1, "step": 1, "total_steps": 2, "loss": 0.5, "parts": {"projection": 0.5}},
        **{"diagnostics": {}, "lr": 0.1, "seconds": 1.0, "validation": True},
    }
    (folder / "history.jsonl").write_text((json.dumps(step) + "\n") * 3)
    (folder / "samples.json").write_text(json.dumps([{"prompt": "Hi.", "texts": {"+1": "Ho."}}]))
    checkpoint.folder_of(folder).mkdir()
    checkpoint.save_start(folder, adapter, torch.eye(4))
    state = TrainingState(
        epoch=0,
        step=1,
        total=2,
        best_loss=0.5,
        best_epoch=0,
        epochs_without_gain=0,
        order=random.Random(0).getstate(),
        budget=512,
        first_budget=512,
        seconds=1.0,
    )
    checkpoint.save_state(folder, checkpoint.Snapshot(state, {"now.x": torch.ones(2)}))
    (folder / "latest").write_text("adapter")
    return lm, adapter, recipe


RUN_FILES = (
    "recipe.yaml",
    "pairs.jsonl",
    "anchors.jsonl",
    "history.jsonl",
    "samples.json",
    "latest",
    "checkpoint/start.safetensors",
    "checkpoint/state.safetensors",
)


def _damage_run(rng: random.Random, folder: Path, _: Any) -> None:
    path = folder / rng.choice(RUN_FILES)
    what = rng.random()
    if what < 0.05:
        path.unlink()
    elif what < 0.1:
        path.unlink()
        path.mkdir()
    elif path.suffix == ".safetensors":
        path.write_bytes(mangle_safetensors(path.read_bytes(), rng))
    else:
        path.write_bytes(mangle_bytes(path.read_bytes(), rng))


def _read_run(folder: Path, made: Any) -> None:
    """Each reader reads its own file: what one refuses, the next one may still read."""
    recipe = made[2]
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_stored_recipe(folder / "recipe.yaml"),
        lambda: read_pairs(folder / "pairs.jsonl"),
        lambda: read_anchors(folder / "anchors.jsonl"),
        lambda: (report._recipe_of(folder), report._history_of(folder, Silent())),
        lambda: report._kept_samples(folder / "samples.json"),
        lambda: runs.latest_run(folder) if (folder / "latest").exists() else None,
        lambda: checkpoint.load_start(folder, recipe.adapter),
        lambda: checkpoint.load_state(folder),
    )
    from pasto_cli.base.errors import PastoError

    refused: PastoError | None = None
    for reader in readers:
        try:
            reader()
        except PastoError as error:
            refused = error
    if refused is not None:
        raise refused


def _nothing(_: Path) -> None:
    return None


KINDS: dict[str, Kind] = {
    "recipe": Kind(_nothing, _damage_recipe, _read_recipe),
    "pairs": Kind(_make_pairs, _damage_pairs, _read_pairs),
    "benchmark": Kind(_nothing, _damage_benchmark, _read_benchmark),
    "pasto.json": Kind(_make_adapter, _damage_meta, _read_meta),
    "safetensors": Kind(_make_adapter, _damage_tensors, _read_tensors),
    "gguf": Kind(_make_gguf, _damage_gguf, _read_gguf, slow=True),
    "template": Kind(_nothing, _damage_template, _read_template),
    "run": Kind(_make_run, _damage_run, _read_run),
}


def copy_example(example: Path, folder: Path) -> None:
    """An example, to be damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(example, folder)


__all__ = ["KINDS", "Kind", "Silent", "copy_example"]
