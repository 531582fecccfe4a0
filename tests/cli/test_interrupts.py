"""Ctrl-C at every moment of a training."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pasto_cli.cli.console import Screen
from pasto_cli.core.artifact import store
from pasto_cli.core.records.training import Step
from pasto_cli.core.training.objective import Objective
from pasto_cli.workflows import dials, train
from tests.support.runs import GENERATE, TRAIN
from tests.support.terminal import contents, strict


def interrupt_when(patch, when):
    """Press Ctrl-C in the moment that training shows a step for which `when` is true."""

    @contextmanager
    def training(self):
        def show(what):
            if isinstance(what, Step) and when(what):
                raise KeyboardInterrupt

        yield show

    patch.setattr(Screen, "training", training)


def only_new_run(project):
    return next(
        p for p in (project.root / "runs").iterdir() if p.name not in ("latest", project.run.name)
    )


@pytest.mark.parametrize("epoch", [0, 1], ids=["after the first step", "after a validation"])
def test_interrupted_training_keeps_a_loadable_adapter(pasto, project, monkeypatch, epoch):
    # The step after a validation is the first of epoch 2.
    interrupt_when(monkeypatch, lambda step: step.epoch == epoch + 1 and not step.validation)
    said = pasto(*TRAIN)
    run = only_new_run(project)
    assert (
        said.code == 130
        and "warning: interrupted after" in said.err
        and f"{run.name}/adapter" in said.err
    )
    assert (
        project.root / "runs" / "latest"
    ).resolve() == project.run  # an unfinished run is not the latest
    assert sorted(contents(run / "adapter")) == ["README.md", "adapter.safetensors", "pasto.json"]
    meta = strict((run / "adapter" / "pasto.json").read_text())
    assert (
        meta["certificate"] is None
        and meta["training"]["interrupted"]
        and meta["training"]["best_epoch"] == epoch
    )
    lines = [strict(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert sum(not line["validation"] for line in lines) == meta["training"]["steps"]
    assert sum(line["validation"] for line in lines) == epoch
    texts = strict(
        pasto(
            "generate",
            "Hello.",
            "-a",
            f"runs/{run.name}",
            "-c",
            "0",
            "-c",
            "1",
            "--max-new-tokens",
            8,
            "--json",
        ).out
    )
    assert len(texts) == 2
    said = pasto("push", "me/dial", "-a", f"runs/{run.name}", "--dry-run")
    assert (
        said.code == 0
        and "No certificate: training was interrupted" in said.out
        and "no passed certificate" in said.err
    )


def test_interrupted_training_goes_on_to_no_other_seed(pasto, project, monkeypatch):
    interrupt_when(monkeypatch, lambda step: True)
    said = pasto(*TRAIN, "--seeds", 3)
    assert said.code == 130
    assert (
        only_new_run(project).name.endswith("-tiny-seed0")
        and len(list((project.root / "runs").iterdir())) == 3
    )


def test_ctrl_c_before_training_is_quiet(pasto, project, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for module in (train, dials):
        monkeypatch.setattr(module, "open_model", stop)
    for args in (TRAIN, GENERATE, ("eval",)):
        assert pasto(*args).code == 130


def test_ctrl_c_before_the_first_step_promises_no_adapter(pasto, project, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Objective, "remember", stop)
    said = pasto(*TRAIN)
    assert said.code == 130 and "there is no adapter" in said.err
    assert not (only_new_run(project) / "adapter").exists()
    assert (project.root / "runs" / "latest").resolve() == project.run


def test_ctrl_c_while_saving_leaves_the_old_adapter_or_the_new_one(pasto, project, monkeypatch):
    real = Path.rename

    def rename(self, target):
        result = real(self, target)
        if str(target).endswith(".old"):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "rename", rename)
    said = pasto(*TRAIN)
    monkeypatch.undo()
    assert said.code == 130
    assert load_file(only_new_run(project) / "adapter" / "adapter.safetensors")


def test_ctrl_c_in_the_first_save_keeps_what_was_trained(pasto, project, monkeypatch):
    real, calls = store.save_file, []

    def save_file(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(store, "save_file", save_file)
    said = pasto(*TRAIN)
    assert said.code == 130
    assert load_file(only_new_run(project) / "adapter" / "adapter.safetensors")


def test_json_of_an_interrupted_training(pasto, project, monkeypatch):
    interrupt_when(monkeypatch, lambda step: True)
    said = pasto(*TRAIN, "--json")
    assert said.code == 130
    assert strict(said.out)["result"]["interrupted"] is True
