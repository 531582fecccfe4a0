"""`pasto train`."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.cli import console
from pasto_cli.core.pairs.pairs import read_pairs
from pasto_cli.core.recipe.load import load_recipe
from tests.support.terminal import SHORT, TINY, contents, strict


def test_train_leaves_a_whole_run(trained):
    root, run, said = trained
    assert sorted(p.name for p in (root / "runs").iterdir()) == sorted([run.name, "latest"])
    assert run.name.endswith("-tiny")
    assert sorted(contents(run)) == [
        "adapter/README.md",
        "adapter/adapter.safetensors",
        "adapter/pasto.json",
        "history.jsonl",
        "pairs.jsonl",
        "recipe.yaml",
    ]
    assert load_recipe(run / "recipe.yaml") == load_recipe(TINY, SHORT[1::2])
    assert len(read_pairs(run / "pairs.jsonl").pairs) == 24
    meta = strict((run / "adapter" / "pasto.json").read_text())
    assert sum(meta["num_pairs"].values()) == 24
    assert meta["certificate"]["passed"] == (said.code == 0)
    assert all(
        torch.isfinite(t).all() for t in load_file(run / "adapter" / "adapter.safetensors").values()
    )
    assert "Certificate passed" in said.out if said.code == 0 else "Certificate FAILED" in said.out
    assert f"{run.name}/adapter" in said.out


def test_a_log_hears_of_what_takes_long(pasto, monkeypatch):
    monkeypatch.setattr(console, "LOG_SECONDS", 0.0)
    said = pasto("train", TINY, *SHORT)
    lines = [line for line in said.err.splitlines() if "epoch" in line or "base's side" in line]
    assert lines[0] == "the base's side of pairs and anchors: 19 of 19"  # 5 make the certificate
    assert lines[1].startswith("epoch 1  step 1/") and "loss" in lines[1]
    assert sum("validation" in line for line in lines) == 2


def test_train_history_has_a_line_for_each_step(trained):
    lines = [strict(line) for line in (trained.run / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if not line["validation"]]
    checks = [line for line in lines if line["validation"]]
    assert [line["step"] for line in steps] == list(range(1, steps[-1]["total_steps"] + 1))
    assert [line["epoch"] for line in checks] == [1, 2]
    for line in lines:
        assert {
            "epoch",
            "step",
            "total_steps",
            "loss",
            "parts",
            "diagnostics",
            "lr",
            "seconds",
        } <= set(line)
        assert math.isfinite(line["loss"]) and {"projection", "coherence", "monotonicity"} <= set(
            line["parts"]
        )
    training = strict((trained.run / "adapter" / "pasto.json").read_text())["training"]
    best = min(checks, key=lambda line: line["loss"])
    assert training["steps"] == len(steps) and training["best_epoch"] == best["epoch"]
    assert training["best_loss"] == pytest.approx(best["loss"], abs=1e-5)
    for line in checks:
        assert f"step {line['step']}/{line['total_steps']}" in trained.said.err


def test_train_twice_gives_the_same_adapter(pasto, trained):
    assert pasto("train", TINY, *SHORT, "--out", "again").code == trained.said.code
    first = load_file(trained.run / "adapter" / "adapter.safetensors")
    second = load_file("again/latest/adapter/adapter.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (trained.run / "pairs.jsonl").read_bytes() == Path(
        "again/latest/pairs.jsonl"
    ).read_bytes()


def test_train_on_a_pairs_file_with_json(pasto, project):
    assert pasto("make-pairs", "kind", "cruel", "--count", 20, "--seed", 5).code == 0
    settings = (
        "--set",
        "pairs={file: pairs.jsonl}",
        "--set",
        "training.epochs=1",
        "--set",
        "name=kindness",
    )
    said = pasto("train", "tiny.yaml", *settings, "--json")
    found = strict(said.out)
    assert said.code == (0 if found["certificate"]["passed"] else 1)
    run = project.root / found["run"]
    assert run.name.endswith("-kindness")
    assert (project.root / "runs" / "latest").resolve() == run  # the newest finished run
    assert read_pairs(run / "pairs.jsonl") == read_pairs(project.root / "pairs.jsonl")
    assert found["result"]["steps"] >= 1 and not found["result"]["interrupted"]
    assert set(found["certificate"]["strength"]) == {"-1", "1"}
    assert (
        strict((run / "adapter" / "pasto.json").read_text())["certificate"] == found["certificate"]
    )
