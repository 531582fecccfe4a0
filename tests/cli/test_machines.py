"""Machines as they are: homes, disks, links, locks and signals."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pasto_cli.base import files
from pasto_cli.core.artifact import store
from pasto_cli.core.training import checkpoint, trainer
from pasto_cli.workflows import publish, report
from pasto_cli.workflows.progress import Silent, mark_latest
from tests.support.runs import TRAIN
from tests.support.terminal import contents


def test_a_tilde_means_the_home_directory(pasto, project, monkeypatch):
    home = project.root / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "words.txt").write_text("I think that\nMy plan is\n" * 3)
    said = pasto("make-pairs", "kind", "cruel", "--count", 9, "--out=~/new/pairs.jsonl")
    assert said.code == 0 and len((home / "new" / "pairs.jsonl").read_text().splitlines()) == 9
    said = pasto("recipes", "cp", "tiny", "--out=~/tiny.yaml")
    assert said.code == 0 and pasto("recipe", "~/tiny.yaml").code == 0
    assert pasto("recipe", "~/tiny.yaml", "--set", "pairs.suffixes=~/words.txt").code == 0
    assert pasto("report", project.run, "--samples", 0, "--out=~/r.html").code == 0
    assert (home / "r.html").is_file() and not Path("~").exists()
    for args in (("report", "~nobody-here/x"), ("make-pairs", "a", "b", "--out=~nobody-here/x")):
        said = pasto(*args)
        assert said.code == 1 and "~nobody-here/x: no such folder" in said.error


def test_latest_that_is_a_folder_costs_nothing(project):
    """The run counts; it is only not the latest one."""
    latest = project.root / "runs" / "latest"
    latest.unlink()
    latest.mkdir()
    warnings = []

    class Watch(Silent):
        def warn(self, text):
            warnings.append(text)

    mark_latest(project.run, Watch())
    assert "latest" in warnings[0] and str(project.run) in warnings[0]
    assert not list(latest.iterdir())


def test_a_folder_is_no_report(pasto, project):
    said = pasto("report", project.run, "--samples", 0, "--out", ".")
    assert said.code == 1 and "Is a directory" in said.error and "name of a file" in said.next_step
    assert "drawing" not in said.err


def test_damaged_samples_are_made_anew(pasto, project):
    path = project.run / "samples.json"
    for text in (
        '[{"prompt": 1, "texts": []}]',
        "[1]",
        "{",
        '[{"prompt": "x", "texts": {"a": 1}}]',
    ):
        path.write_text(text)
        assert report._kept_samples(path) == []


def test_what_was_measured_is_shown_on_a_full_disk(pasto, project, monkeypatch):
    def full(path, text):
        raise files.not_written(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr("pasto_cli.workflows.evaluate.write_text", full)
    said = pasto("eval", "-b", "sentiment", "--limit", 1, "--coeffs=0,1")
    assert said.code == 0 and "is not kept" in said.err and "No space left" in said.err
    assert said.out.strip()


def test_a_full_disk_ends_a_training_that_goes_on_afterwards(pasto, project, monkeypatch):
    real = checkpoint.save_state
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)

    def full(run, snapshot):
        if snapshot.state.step == 2:
            raise files.not_written(run / "x", OSError(errno.ENOSPC, "No space left on device"))
        real(run, snapshot)

    monkeypatch.setattr(checkpoint, "save_state", full)
    said = pasto(*TRAIN, "--out", "new")
    (run,) = Path("new").iterdir()
    assert said.code == 1 and f"pasto train --resume {run}" in said.next_step
    state = checkpoint.load_state(run)
    assert state is not None and state.state.step == 1


def test_two_trainings_of_one_run_on_a_disk_without_locks(tmp_path, monkeypatch):
    import fcntl

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with checkpoint.held(tmp_path):
        with pytest.raises(files.PastoError, match="another process trains"):
            with checkpoint.held(tmp_path):
                pass
        owner = checkpoint.folder_of(tmp_path) / "owner"
        assert owner.exists()
    assert not owner.exists()
    machine = checkpoint.this_process().partition("-")[0]
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    owner.write_text(f"{machine}-{child.pid}")  # killed here: its lock is void
    with checkpoint.held(tmp_path):
        pass
    owner.write_text("otherbox-1")
    with pytest.raises(files.PastoError, match="another process trains") as error:
        with checkpoint.held(tmp_path):
            pass
    assert str(owner) in error.value.hint


def test_sigterm_ends_as_ctrl_c_does(pasto, project, monkeypatch):
    real = trainer._Loop._step

    def step(self, epoch, group):
        real(self, epoch, group)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer._Loop, "_step", step)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        said = pasto(*TRAIN, "--out", "new")
    finally:
        signal.signal(signal.SIGTERM, before)
    (run,) = Path("new").iterdir()
    assert said.code == 130 and f"pasto train --resume {run}" in said.err
    assert (run / "adapter" / "adapter.safetensors").is_file()


# Publishing


@pytest.fixture()
def on(project):
    """Let the run say that it was trained on another base."""

    def change(source, commit=None):
        path = project.run / "adapter" / "pasto.json"
        meta = json.loads(path.read_text())
        meta["base"]["spec"]["source"], meta["base"]["commit"] = source, commit
        path.write_text(json.dumps(meta))

    return change


def front(said):
    return yaml.safe_load(said.out.split("---\n")[1])


@pytest.mark.parametrize(
    ("source", "commit", "base"),
    [
        ("google/gemma", "0a1b2c3", "google/gemma"),
        ("hf:org/name/file.gguf", "sha256:ab", "org/name"),
        ("models/llama", None, None),
        ("./m.gguf", "sha256:ab", None),
        ("package:pkg/m.gguf", "sha256:ab", None),
    ],
)
def test_a_card_names_a_base_on_the_hub_only(pasto, on, source, commit, base):
    on(source, commit)
    said = pasto("push", "me/dial", "--dry-run")
    assert said.code == 0, said.err
    assert front(said).get("base_model") == base
    asked = source in ("models/llama", "./m.gguf")
    assert ("--base-model" in said.err) is asked


def test_a_local_base_can_be_named(pasto, on, project):
    on("models/llama")
    before = contents(project.run)
    said = pasto("push", "me/dial", "--dry-run", "--base-model", "org/llama")
    assert said.code == 0 and front(said)["base_model"] == "org/llama"
    assert "--base-model" not in said.err and contents(project.run) == before
    said = pasto("push", "me/dial", "--dry-run", "--base-model", "./llama")
    assert said.code == 1 and "not a repository id" in said.error
    on("google/gemma", "0a1b2c3")
    said = pasto("push", "me/dial", "--dry-run", "--base-model", "org/llama")
    assert said.code == 1 and "google/gemma" in said.error


def test_what_is_uploaded_names_the_base_for_others(pasto, on, project, monkeypatch):
    from pasto_cli.core.artifact import hub

    uploaded = {}

    def upload(folder, repo, card, meta, private):
        uploaded.update(json.loads(meta))
        return "address"

    monkeypatch.setattr(hub, "upload", upload)
    monkeypatch.setattr(hub, "commit_of", lambda repo: "c0ffee")
    on("models/llama")
    assert pasto("push", "me/dial", "--base-model", "org/llama").code == 0
    assert uploaded["base"]["spec"]["source"] == "org/llama"
    assert uploaded["base"]["commit"] == "c0ffee"
    local = json.loads((project.run / "adapter" / "pasto.json").read_text())
    assert local["base"]["spec"]["source"] == "models/llama"


def test_half_a_download_is_said(project, tmp_path, monkeypatch):
    import huggingface_hub

    from pasto_cli.core.artifact import hub

    half = tmp_path / "half"
    half.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(half))
    with pytest.raises(files.PastoError, match="not an adapter of this format"):
        hub.download("u/half")
    (half / store.META).write_bytes((project.run / "adapter" / store.META).read_bytes())
    with pytest.raises(files.PastoError, match="u/half is not complete: adapter.safetensors"):
        hub.download("u/half")
    tensors = (project.run / "adapter" / store.TENSORS).read_bytes()
    (half / store.TENSORS).write_bytes(tensors[: len(tensors) // 2])
    with pytest.raises(files.PastoError, match="not the file that"):
        publish.pull_adapter("u/half", tmp_path / "new", None, Silent(), force=False)
    assert not (tmp_path / "new").exists()
