"""The command line under a launcher: one run, one voice, the numbers of one process."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.support.terminal import SHORT, TINY, call_in

FAST = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(
    folder,
    *words,
    launcher=("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"),
):
    code = [sys.executable, "-m", *launcher, "-m", "pasto_cli", *map(str, words)]
    return subprocess.run(
        code, cwd=folder, capture_output=True, text=True, env=os.environ | FAST, timeout=300
    )


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
    two, one = (
        load_file(tmp_path / root / "latest" / "adapter" / "adapter.safetensors")
        for root in ("runs", "alone")
    )
    assert max((two[name] - one[name]).abs().max().item() for name in one) < 1e-5

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
