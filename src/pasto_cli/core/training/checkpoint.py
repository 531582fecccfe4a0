"""Where a training stands, on disk: what a killed run needs to end as if nothing happened.

    RUN/checkpoint/start.safetensors    factors, initial weights, subspace basis: written once
    RUN/checkpoint/state.safetensors    weights, best weights, those of members that have ended,
                                        optimiser; metadata: `TrainingState`
    RUN/checkpoint/lock                 held by the process that trains
    RUN/checkpoint/owner                names it, on a disk that knows no locks

Each file is replaced as a whole, after its bytes have reached the disk. That start.safetensors is
there means that the run is under way: it is written when preparation is done, and deleted first
when the run has finished.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import replace_file, writing
from pasto_cli.base.scratch import is_dead, this_process
from pasto_cli.core.recipe.schema import AdapterSpec
from pasto_cli.core.records.training import TrainingState
from pasto_cli.core.steering.adapter import Adapter, to_tensors
from pasto_cli.core.steering.kinds import from_tensors

FOLDER, START, STATE = "checkpoint", "start.safetensors", "state.safetensors"
LOCK, OWNER = "lock", "owner"
AGAIN = "Train again from the recipe."


class Snapshot(NamedTuple):
    """Everything that changes while a training runs."""

    state: TrainingState
    """Step, epoch, order of the pairs, best loss, node budget, size of history.jsonl."""
    tensors: dict[str, Tensor]
    """`now.` weights, `best.` weights, `ended.` weights of members, `optimizer.` moments."""


def optimizer_moments(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Index of a parameter -> name -> moment, of a snapshot's tensors."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            found.setdefault(int(index), {})[name] = x
    return found


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoint."""
    return run / FOLDER


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other processes from training this run; the lock goes with the process, however it ends.

    Raises:
        PastoError: If another one does already.
    """
    path = folder_of(run) / LOCK
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        file = path.open("w")
    with file:
        with nullcontext() if _locked(file, run) else _named(folder_of(run) / OWNER, run):
            yield


def _locked(file: TextIO, run: Path) -> bool:
    """Lock a file for this process; False where the system knows no locks.

    Raises:
        PastoError: If another process has it.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PastoError(
            f"another process trains {run}", "Wait for it, or stop it first."
        ) from None
    except (ImportError, OSError):  # Windows, and network disks that know no locks
        return False
    return True


@contextmanager
def _named(path: Path, run: Path) -> Iterator[None]:
    """A lock without the system's help: a file that only one process can make, with its name."""
    try:
        if is_dead(path.read_text(encoding="ascii")):
            path.unlink()
    except (OSError, ValueError):
        pass  # there is none
    with writing(path):
        try:
            with path.open("x", encoding="ascii") as file:
                file.write(this_process())
        except FileExistsError:
            raise PastoError(
                f"another process trains {run}",
                f"Wait for it, or stop it first. If it was killed on another machine: rm {path}",
            ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def save_start(run: Path, adapter: Adapter, basis: Tensor) -> None:
    """Keep what preparation gave: on another machine it may round otherwise."""
    tensors = to_tensors(adapter) | {"basis": basis}
    _save(folder_of(run) / START, tensors, {"paths": adapter.paths})


def load_start(run: Path, spec: AdapterSpec) -> tuple[Adapter, Tensor] | None:
    """(fresh adapter, basis) as `save_start` kept them, on the CPU; None where there are none.

    Raises:
        PastoError: If the file is damaged.
    """
    found = _load(folder_of(run) / START)
    if found is None:
        return None
    facts, tensors = found
    try:
        return from_tensors(facts["paths"], tensors, spec), tensors["basis"]
    except KeyError as error:
        raise PastoError(f"{folder_of(run) / START}: {error} is missing", AGAIN) from None


def save_state(run: Path, snapshot: Snapshot) -> None:
    """Replace the state of a run.

    Raises:
        PastoError: If the disk is full or the folder cannot be written.
    """
    _save(folder_of(run) / STATE, snapshot.tensors, snapshot.state.model_dump())


def load_state(run: Path) -> Snapshot | None:
    """The last state of a run, or None where no step was kept.

    Raises:
        PastoError: If the file is damaged.
    """
    path = folder_of(run) / STATE
    found = _load(path)
    if found is None:
        return None
    facts, tensors = found
    try:
        return Snapshot(TrainingState.model_validate(facts), tensors)
    except ValidationError as error:
        raise PastoError(f"{path}: damaged ({first_problem(error)})", AGAIN) from None


def begun(run: Path) -> bool:
    """Whether there is something to go on from: preparation is done, the run is not finished."""
    return (folder_of(run) / START).exists()


def retire(run: Path) -> None:
    """Say, at one stroke, that a run has finished; to be called while it is held."""
    (folder_of(run) / START).unlink(missing_ok=True)


def remove(run: Path) -> None:
    """Delete the checkpoint of a run that has finished."""
    shutil.rmtree(folder_of(run), ignore_errors=True)


def _save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace a file of tensors and JSON facts."""
    on_cpu = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # A rename may reach the disk before the bytes do, and a power cut would leave a file of zeros
    # under the good name.
    replace_file(path, lambda at: save_file(on_cpu, at, {"facts": json.dumps(facts)}), sync=True)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, tensors) of a file, or None where there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            # Cloned: tensors of an open file are views of it, and training replaces the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return facts, tensors
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PastoError(f"{path}: damaged ({error})", AGAIN) from None
