"""A full disk or a kill at some of the writes of a training; at all of them: make test-faults."""

import json
import os
import subprocess
import sys

from tests.support.terminal import ROOT

POINTS = (6, 32, 41, 62, 108)
"""The pairs, the start of a checkpoint, its state, the adapter's facts, the end of an old adapter;
of some 150."""


def test_a_fault_costs_the_step_in_progress_at_most(tmp_path):
    command = [sys.executable, "-m", "tests.robustness.faults", str(tmp_path / "sweep")]
    for number in POINTS:
        command += ["--only", str(number)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [point["point"] for point in found] == list(POINTS)
    assert {"resumed, the same bytes"} <= {point["kill"] for point in found}
    assert found[0]["kill"] == "nothing was begun"
