"""Four workers on one study in a real PostgreSQL, one killed: nothing is lost or done twice."""

import collections
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.terminal import SHORT, TINY

pytestmark = pytest.mark.postgres
TRIALS = 12
SEARCH = (
    *("tune", str(TINY), *SHORT, "--trials", str(TRIALS)),
    *("--set", "tune.keys={training.lr: {low: 0.002, high: 0.02, log: true}}"),
    *("--set", "tune.finalists=1", "--set", "tune.seeds=3", "--set", "tune.prune=false"),
)


def programs() -> Path:
    """Folder of initdb and pg_ctl."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.fail("no PostgreSQL here: apt-get install postgresql")
    return found[-1] if found else Path(on_path).parent


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """URL of a database in a server of our own on loopback; it refuses to run as root."""
    folder = tmp_path_factory.mktemp("postgres")
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        for path in (folder, *folder.parents[:2]):
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, run = folder / "data", programs()

    def do(*args):
        subprocess.run([*user, *map(str, args)], check=True, cwd=folder, capture_output=True)

    do(run / "initdb", "-D", data, "-A", "trust", "-U", "pasto", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    do(run / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
    do(run / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "pasto", "dials")
    yield f"postgresql://pasto:secret@127.0.0.1:{port}/dials"
    do(run / "pg_ctl", "-D", data, "-m", "immediate", "stop")


def start(folder, *args):
    """`pasto ARGS` in a process and folder of its own, as on another machine."""
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PASTO_CACHE": str(folder.parent / "cache")}
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "pasto_cli", *map(str, args)]
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )


def wait_until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_four_workers_one_of_them_killed(database, tmp_path):
    import optuna

    leader = start(tmp_path / "w0", *SEARCH, "--storage", database, "--json")
    wait_until(lambda: list((tmp_path / "w0").glob("runs/tune/tiny/*-t*")), 120)
    join = (*SEARCH, "--storage", database, "--worker")
    workers = [start(tmp_path / f"w{n}", *join) for n in (1, 2, 3)]
    victim = tmp_path / "w2"
    wait_until(lambda: list(victim.glob("runs/tune/tiny/*/checkpoint/start.safetensors")), 240)
    os.kill(workers[1].pid, signal.SIGKILL)
    out, _ = leader.communicate(timeout=900)
    log = (tmp_path / "w0" / "log").read_text()
    assert leader.returncode == 0, log
    assert [workers[n].wait(timeout=120) for n in (0, 2)] == [0, 0]
    found = json.loads(out)
    assert [t["number"] for t in found["trials"]] == list(range(1, TRIALS + 1))
    assert {t["state"] for t in found["trials"]} == {"complete"}
    assert [f["seeds"] for f in found["finalists"]] == [[1, 2, 3]]
    assert "secret" not in out + log and "***" in found["storage"]

    url = database.replace("postgresql://", "postgresql+psycopg://")
    for name in ("tiny", "tiny-seeds"):
        trials = optuna.load_study(study_name=name, storage=url).trials
        done = collections.Counter(
            t.user_attrs["slot"] for t in trials if t.state.name == "COMPLETE"
        )
        assert set(done.values()) == {1}  # none done twice
        assert not [t for t in trials if t.state.name in ("RUNNING", "WAITING")]
    trials = optuna.load_study(study_name="tiny", storage=url).trials
    failed = {t.user_attrs.get("slot") for t in trials if t.state.name == "FAIL"} - {None}
    assert len(failed) == 1  # of the worker that was killed; done by another one
    assert len({t["worker"] for t in found["trials"]}) >= 3
