"""Runs that survive: kill -9 at random moments, Ctrl-C, a second process, finished runs, vanished
files, full disks."""

import json
import os
import shutil

import pytest

from pasto_cli.core.artifact import store
from pasto_cli.core.training import checkpoint, trainer
from pasto_cli.core.training.objective import Objective
from pasto_cli.workflows import dials, progress
from tests.support.forks import run_forked
from tests.support.killing import killed_between_renames
from tests.support.terminal import SHORT, TINY, call_in, contents

MOMENTS = 3
"""Of each seed."""
RESUMABLE = ("--set", "training.epochs=3", "--set", "pairs.count=24")
BRIEF = ("--set", "training.epochs=2", "--set", "pairs.count=16")


TERMS = {
    2: (
        "--set",
        "pairs.answers={count: 16, tokens: 4, temperature: 1.0}",
        "--set",
        "losses.preference={count: 2}",
    ),
    1: ("--set", "adapter.kind=lora"),
    3: ("--set", "losses.anchor={count: 2, tokens: 2, prompts: FEW}"),
}
"""Seed -> terms that are off by default."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", [0, *TERMS])
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(tmp_path, seed):
    few = tmp_path / "few.txt"
    few.write_text("".join(f"What is {n} plus {n}?\n" for n in range(12)))
    terms = [term.replace("FEW", str(few)) for term in TERMS.get(seed, ())]
    args = (TINY, tmp_path, seed, MOMENTS, *BRIEF, *terms)
    done = run_forked(
        "tests.support.kills:moments",
        [str(arg) for arg in args],
        cwd=tmp_path,
        env=os.environ,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    whole, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert whole["code"] in (0, 1) and len(killed) == MOMENTS
    begun = [moment for moment in killed if moment["begun"]]
    assert begun, killed
    for moment in begun:
        assert moment["same"] and moment["codes"][-1] == whole["code"] and not moment["left"], (
            moment
        )


def test_the_same_run_twice_gives_the_same_bytes(pasto, trained, tmp_path):
    pasto("train", TINY, *SHORT)
    assert (tmp_path / "runs" / "latest" / "adapter" / "adapter.safetensors").read_bytes() == (
        trained.run / "adapter" / "adapter.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory):
    """A folder with a run that Ctrl-C ended after its third step: nothing may change it."""
    root, real = tmp_path_factory.mktemp("interrupted"), trainer._Loop._step

    def step(self, epoch, group):
        if self.step == 3:
            raise KeyboardInterrupt
        real(self, epoch, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
        patch.setattr(trainer._Loop, "_step", step)
        said = call_in(root, "train", TINY, *RESUMABLE)
    assert said.code == 130
    (run,) = (root / "runs").iterdir()
    assert f"pasto train --resume {run.relative_to(root)}" in said.err
    return root


@pytest.fixture()
def interrupted(interrupted_once, tmp_path, monkeypatch):
    """A copy of that run, in the folder where `pasto` works."""
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
    shutil.copytree(interrupted_once / "runs", tmp_path / "runs", symlinks=True)
    (run,) = (tmp_path / "runs").iterdir()
    return run


def test_ctrl_c_can_be_taken_back(pasto, interrupted, tmp_path):
    steps = [
        json.loads(line)["step"]
        for line in (interrupted / "history.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 3
    said = pasto("train", "--resume", interrupted)
    assert said.code in (0, 1) and "going on after step 3" in said.err
    assert not (interrupted / "checkpoint").exists()
    again = pasto("train", "--resume", interrupted)
    assert again.code == 1 and "is finished" in again.error and "pasto eval" in again.next_step
    whole = pasto("train", TINY, *RESUMABLE, "--out", "other")
    assert whole.code == said.code
    assert (
        contents(interrupted / "adapter")["adapter.safetensors"]
        == contents((tmp_path / "other" / "latest" / "adapter").resolve())["adapter.safetensors"]
    )
    lines = [
        [json.loads(x) | {"seconds": 0} for x in (r / "history.jsonl").read_text().splitlines()]
        for r in (interrupted, tmp_path / "other" / "latest")
    ]
    assert lines[0] == lines[1]


def test_a_run_that_an_earlier_version_began_goes_on(pasto, interrupted):
    """Its recipe.yaml has a key that is called otherwise now."""
    path = interrupted / "recipe.yaml"
    text = path.read_text()
    assert "activation_pairs" in text
    path.write_text(text.replace("activation_pairs", "calibration_pairs"))
    said = pasto("train", "--resume", interrupted)
    assert said.code in (0, 1) and "going on after step 3" in said.err
    assert not (interrupted / "checkpoint").exists()


def test_a_second_process_is_refused(pasto, interrupted):
    with checkpoint.held(interrupted):
        said = pasto("train", "--resume", interrupted)
    assert said.code == 1 and "another process trains" in said.error


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("pairs.jsonl", None, "pairs.jsonl"),
        ("recipe.yaml", None, "recipe.yaml is missing: its training had not begun"),
        ("checkpoint/state.safetensors", b"\xff" * 100, "state.safetensors: damaged"),
        ("checkpoint/start.safetensors", b"", "start.safetensors: damaged"),
    ],
)
def test_what_vanished_or_is_damaged_is_a_clear_line(pasto, interrupted, name, change, error):
    if change is None:
        (interrupted / name).unlink()
    else:
        (interrupted / name).write_bytes(change)
    before = contents(interrupted / "adapter")
    said = pasto("train", "--resume", interrupted)
    assert said.code == 1 and error in said.err and said.next_step
    assert contents(interrupted / "adapter") == before


@pytest.mark.parametrize(
    "args", [(), ("recipe.yaml", "--resume", "runs/x"), ("--resume", "runs/x", "--set", "name=a")]
)
def test_resume_and_recipe_exclude_each_other(pasto, args):
    said = pasto("train", *args)
    assert (
        (said.code, "Missing argument" in said.err) == (2, True)
        if not args
        else "from the run" in said.error
    )


def test_a_run_that_failed_before_it_began_leaves_nothing(pasto, tmp_path):
    said = pasto("train", TINY, "--set", "model.source=./nowhere")
    assert said.code == 1 and not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_leaves_its_batch_and_the_last_good_adapter(
    pasto, tmp_path, monkeypatch
):
    real, calls = Objective.__call__, []

    def break_later(self, *args, **more):
        report = real(self, *args, **more)
        calls.extend([1] if report.total.requires_grad else [])
        return report._replace(total=report.total * float("nan")) if len(calls) == 3 else report

    monkeypatch.setattr(Objective, "__call__", break_later)
    said = pasto("train", TINY, *RESUMABLE)
    assert (
        said.code == 1
        and "the loss is nan at step 3" in said.error
        and "failed_batch.json" in said.next_step
    )
    (run,) = (tmp_path / "runs").iterdir()
    failed = json.loads((run / "failed_batch.json").read_text())
    assert "nan" in failed["problem"] and all(
        row["chosen"] and row["rejected"] for row in failed["pairs"]
    )
    assert pasto("generate", "--adapter", run, "--max-new-tokens", "1", "Hello").code == 0


def save_again(run):
    dial = dials.open_dial(str(run), progress.Silent(), packing=False)
    return lambda: store.save(run / "adapter", dial.adapter, dial.meta, "another card")


@pytest.mark.parametrize("name", ["run", "run/adapter", None])
def test_after_a_save_that_was_killed_the_old_adapter_is_found(pasto, project, name):
    again, before = save_again(project.run), contents(project.run / "adapter")
    killed_between_renames(again)
    assert not (project.run / "adapter").exists()
    said = pasto("verify", *([name.replace("run", str(project.run), 1)] if name else []))
    assert said.code == 0, said.err
    assert contents(project.run / "adapter") == before
    again()
    assert pasto("verify", project.run).code == 0
    assert contents(project.run / "adapter")["README.md"] == b"another card"
    assert not [path for path in project.run.rglob(".*")]


def test_a_finished_run_whose_adapter_lies_aside_is_still_finished(pasto, project):
    killed_between_renames(save_again(project.run))
    said = pasto("train", "--resume", project.run)
    assert said.code == 1 and "is finished" in said.error
    assert (project.run / "adapter" / "pasto.json").is_file()


def test_an_export_that_was_killed_keeps_the_old_one(pasto, project):
    export = ("export", "--coeff", "1", "--format", "lora", "--out", "out")
    assert pasto(*export).code == 0
    before = contents(project.root / "out" / "lora-plus1.00")
    killed_between_renames(lambda: pasto(*export, "--force"))
    assert not (project.root / "out" / "lora-plus1.00").exists()
    assert pasto(*export).code == 0
    assert contents(project.root / "out" / "lora-plus1.00") == before
    assert os.listdir(project.root / "out") == ["lora-plus1.00"]
