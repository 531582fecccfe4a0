"""What pasto.json and checkpoints say of a training: old files load and are written alike."""

import json
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import without_nan
from pasto_cli.core.records.training import (
    ImportRecord,
    Step,
    TrainingRecord,
    TrainingState,
    TrainResult,
)
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.checkpoint import Snapshot
from pasto_cli.core.training.recorder import RunRecorder

FINISHED = {
    "steps": 24,
    "best_epoch": 6,
    "best_loss": 41.047698974609375,
    "interrupted": False,
    "stopped_early": False,
    "angle": 36.87545869590244,
}
EARLY = {"steps": 3, "best_epoch": 1, "best_loss": 52.5, "interrupted": True}
BEFORE_VALIDATION = {"steps": 1, "best_epoch": 0, "best_loss": None, "interrupted": True}
IMPORTED = {"imported": "someone/adapter"}
RECORDS = {
    "finished": FINISHED,
    "early": EARLY,
    "before a validation": BEFORE_VALIDATION,
    "interrupted before a validation": FINISHED | {"best_loss": None, "interrupted": True},
    "imported": IMPORTED,
}
META = {
    "format_version": 1,
    "created": "2026-11-25T10:11:09+00:00",
    "base": {
        "spec": {"source": "random:llama"},
        "commit": None,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "fingerprints": {},
    },
    "bound": "spectral",
    "max_angle": 45.0,
    "largest_angle": 36.9,
    "recipe": {},
    "pairs_sha256": "",
    "num_pairs": {"train": 1, "validation": 1, "certificate": 1},
    "personas": ["a", "b"],
    "certificate": None,
    "reference": {
        "prompt": "x",
        "token_ids": [1],
        "logits": {"-1": [0.0], "0": [0.0], "1": [0.0]},
    },
    "versions": {},
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_format_1_load_and_are_written_with_the_same_keys(name):
    record = RECORDS[name]
    meta = Meta.model_validate(META | {"training": record})
    assert isinstance(meta.training, ImportRecord if name == "imported" else TrainingRecord)
    written = json.loads(json.dumps(without_nan(meta.model_dump(mode="json")), allow_nan=False))
    assert written["training"] == record and list(written["training"]) == list(record)


@pytest.mark.parametrize("wrong", [{}, {"steps": 3}, EARLY | IMPORTED, EARLY | {"steps": "many"}])
def test_what_is_neither_is_refused(wrong):
    with pytest.raises(ValidationError):
        Meta.model_validate(META | {"training": wrong})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_null(loss):
    record = TrainResult(3, 0, loss, True, False, 1.5).record()
    written = json.loads(json.dumps(record.model_dump(mode="json"), allow_nan=False))
    assert written["best_loss"] is None and written["angle"] == 1.5
    again = TypeAdapter(TrainingRecord | ImportRecord).validate_python(written)
    assert isinstance(again, TrainingRecord) and math.isnan(again.best_loss)


def facts(**changes):
    """State of a training in a checkpoint, as JSON gives it back."""
    return {
        "epoch": 1,
        "step": 5,
        "total": 24,
        "best_loss": math.inf,
        "best_epoch": 0,
        "epochs_without_gain": 0,
        "order": [3, [1, 2, 3], None],
        "budget": 512,
        "first_budget": 512,
        "seconds": 1.25,
        "so_far": BEFORE_VALIDATION,
        "history_bytes": 10,
        **changes,
    }


@pytest.mark.parametrize("best_loss", [math.inf, math.nan, 3.5])
def test_states_of_old_checkpoints_load_and_are_written_with_the_same_keys(best_loss):
    old = json.loads(json.dumps(facts(best_loss=best_loss)))
    state = TrainingState.model_validate(old)
    again = json.loads(json.dumps(state.model_dump()))
    assert list(again) == list(old) and json.dumps(again) == json.dumps(old)


def step(number, loss, validation=False):
    return Step(number, number, 9, loss, {}, {}, 0.1, 0.0, validation)


def snapshot():
    return Snapshot(TrainingState.model_validate(facts()), {"x": torch.ones(2)})


def test_a_run_recorder_keeps_history_the_best_adapter_and_checkpoints(tmp_path):
    saved, shown = [], []
    checkpoint.folder_of(tmp_path).mkdir()
    with RunRecorder(tmp_path, saved.append, show=shown.append, warn=print) as recorder:
        recorder.on_step(step(1, 9.0))
        recorder.on_step(step(1, 5.0, validation=True))
        recorder.on_best()
        recorder.on_step(step(2, 4.0))
        recorder.on_step(step(2, 7.0, validation=True))
        recorder.on_snapshot(snapshot())
        recorder.on_step(step(3, 1.0))
    assert saved == [TrainingRecord(steps=1, best_epoch=1, best_loss=5.0, interrupted=True)]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [9.0, 5.0, 4.0, 7.0, 1.0]
    assert len(shown) == 5
    kept = checkpoint.load_state(tmp_path)
    assert kept.state.so_far == TrainingRecord(
        steps=2, best_epoch=1, best_loss=5.0, interrupted=True
    )
    # Going on from there forgets what came after the snapshot.
    with RunRecorder(
        tmp_path, saved.append, show=shown.append, warn=print, resume_from=kept
    ) as recorder:
        recorder.on_step(step(3, 2.0))
        recorder.on_best()
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [9.0, 5.0, 4.0, 7.0, 2.0]
    assert saved[-1] == TrainingRecord(steps=3, best_epoch=1, best_loss=5.0, interrupted=True)
