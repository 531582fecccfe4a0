"""The command line under a launcher: one run, one voice, the numbers of one process."""

import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.support.terminal import SHORT, TINY, call_in, strict

FAST = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(
    folder,
    *words,
    launcher=("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"),
):
    code = [sys.executable, *(("-m", *launcher) if launcher else ()), "-m", "pasto_cli"]
    code += map(str, words)
    return subprocess.run(
        code, cwd=folder, capture_output=True, text=True, env=os.environ | FAST, timeout=300
    )


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def weights(run):
    return load_file(run / "adapter" / "adapter.safetensors")


def apart(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_and_measure_one_adapter(tmp_path):
    arguments = ("train", TINY, *SHORT, "--set", "training.precision=float32")
    done = launch(tmp_path, *arguments)
    alone = call_in(tmp_path, *arguments, "--out", "alone")
    assert (done.returncode == 0) == (alone.code == 0), done.stderr
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == 2 and runs[1] == "latest"
    assert done.stdout.count("Certificate") == alone.out.count("Certificate") == 1
    assert done.stderr.count("validation") == alone.err.count("validation") == 2
    two, one = (tmp_path / root / "latest" for root in ("runs", "alone"))
    assert apart(weights(two), weights(one)) < 1e-5

    done = launch(tmp_path, "eval", "--benchmark", "mini-dilemmas", "--limit", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Steering F1") <= 2
    assert [path.name for path in (tmp_path / "runs" / "latest" / "eval").iterdir()] == [
        "mini-dilemmas.json"
    ]


@pytest.mark.slow
def test_accelerate_on_a_cpu_is_told_how_to_get_more_than_one_process(tmp_path):
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2")
    done = launch(tmp_path, "train", tmp_path / "missing.yaml", launcher=launcher)
    assert done.returncode != 0
    assert "torchrun --nproc-per-node 2" in done.stderr and "no such" in done.stderr.lower()


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_train_one_adapter(tmp_path):
    """Each node has a launcher and folders of its own; they meet at an address."""
    arguments = ("train", TINY, *SHORT, "--set", "training.precision=float32")
    common = ("--nnodes", "2", "--nproc-per-node", "1")
    meet = ("--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    nodes = []
    for rank in range(2):
        (tmp_path / f"node{rank}").mkdir()
        launcher = (*common, "--node-rank", str(rank), *meet, "-m", "pasto_cli")
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, arguments)],
                cwd=tmp_path / f"node{rank}",
                env=os.environ | FAST,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    (said, told), (silent, _) = (node.communicate(timeout=300) for node in nodes)
    alone = call_in(tmp_path, *arguments, "--out", "alone")
    assert (nodes[0].returncode == 0) == (alone.code == 0), told
    assert said.count("Certificate") == 1 and "Certificate" not in silent
    assert not (tmp_path / "node1" / "runs").exists()  # the first node's run is the run
    one, two = (tmp_path / root / "latest" for root in ("alone", "node0/runs"))
    assert apart(weights(one), weights(two)) < 1e-5


@pytest.mark.processes
@pytest.mark.slow
def test_processes_train_each_trial_of_a_search_together(tmp_path):
    """A trial, and one more of a search that goes on: the numbers of one process."""
    pytest.importorskip("optuna")
    keys = "{training.lr: {low: 0.002, high: 0.02, log: true}}"
    search = (
        *("tune", TINY, *SHORT, "--set", f"tune.keys={keys}"),
        *("--set", "training.precision=float32", "--set", "evaluation.precision=float32"),
        *("--set", "tune.finalists=0", "--json"),
    )
    first = launch(tmp_path, *search, "--trials", 1)
    assert first.returncode == 0, first.stderr
    done = launch(tmp_path, *search, "--trials", 2, "--resume")
    assert done.returncode == 0, done.stderr
    together = strict(done.stdout)
    alone = launch(tmp_path, *search, "--trials", 2, "--out", "alone", launcher=())
    assert alone.returncode == 0, alone.stderr
    by_one = strict(alone.stdout)
    assert [t["state"] for t in together["trials"]] == ["complete"] * 2
    for here, there in zip(together["trials"], by_one["trials"], strict=True):
        assert here["settings"] == there["settings"]
        assert here["objectives"] == pytest.approx(there["objectives"], rel=1e-2, abs=1e-3)
    runs = [path.name for path in (tmp_path / "runs" / "tune" / "tiny").glob("*-tiny-*")]
    assert len(runs) == 2


@pytest.mark.processes
@pytest.mark.slow
def test_processes_make_a_dial(tmp_path):
    words = ("dial", "random:llama", "honest", "dishonest", "--quick", "--recipe-out", "own.yaml")
    off = ("pairs.screen=off", "calibration=off", "losses.anchor=null", "pairs.count=24")
    done = launch(tmp_path, *words, *(part for key in off for part in ("--set", key)))
    assert "Traceback" not in done.stderr and done.stdout.count("Certificate") == 1
    assert "now: pasto chat" in done.stdout and (tmp_path / "own.yaml").is_file()
    assert len(list((tmp_path / "runs").glob("*-honest-dishonest"))) == 1
