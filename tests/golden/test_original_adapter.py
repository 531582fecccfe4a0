"""An adapter in the published format, imported: its golden logits at every coefficient; what cannot
be imported is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError
from pasto_cli.core.artifact import antipasto_format
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.import_ import import_adapter


@pytest.fixture()
def published(golden):
    return golden / "original_adapter"


def imported(published, tmp_path, source=None):
    return import_adapter(
        str(source or published / "adapter"),
        str(published / "base_model"),
        ("honest", "dishonest"),
        tmp_path / "runs",
        progress.Silent(),
    )


@torch.no_grad()
def test_logits_are_the_originals_at_every_coefficient(published, tmp_path):
    run = imported(published, tmp_path)
    dial = dials.open_dial(str(run), progress.Silent(), packing=False)
    expected = load_file(published / "expected.safetensors")
    ids = expected["input_ids"]
    assert {k for k in expected if k.startswith("logits")} > {"logits_base", "logits_alpha_-1"}
    for name, logits in expected.items():
        if name.startswith("logits"):
            a = 0.0 if name == "logits_base" else float(name.removeprefix("logits_alpha_"))
            with dial.steerer.at(a):
                torch.testing.assert_close(
                    dial.lm.model(input_ids=ids).logits, logits, rtol=0, atol=1e-4
                )
    assert dial.meta.bound == "entrywise" and dial.meta.max_angle == pytest.approx(45.0)


def test_another_base_is_refused(published, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(published / "base_model", base)
    weights = load_file(base / "model.safetensors")
    torch.manual_seed(0)
    weights["model.layers.1.mlp.down_proj.weight"] = torch.randn_like(
        weights["model.layers.1.mlp.down_proj.weight"]
    )
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(PastoError, match="wrong base: model.layers.1.mlp.down_proj"):
        import_adapter(
            str(published / "adapter"),
            str(base),
            ("a", "b"),
            tmp_path / "runs",
            progress.Silent(),
        )
    assert not (tmp_path / "runs").exists()


def damaged(
    published, tmp_path, change_config=None, change_tensors=None, file=antipasto_format.TENSORS
):
    folder = tmp_path / "adapter"
    shutil.copytree(published / "adapter", folder)
    if change_config:
        config = json.loads((folder / antipasto_format.CONFIG).read_text())
        config.update(change_config)
        (folder / antipasto_format.CONFIG).write_text(json.dumps(config))
    if change_tensors:
        tensors = load_file(folder / file)
        change_tensors(tensors)
        save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"rotate_u": True}, "rotate_u True"),
        ({"rotation_method": "matrix_exp"}, "matrix_exp"),
        ({"peft_type": "LORA"}, "LORA"),
        ({"max_rotation_angle": None}, "max_rotation_angle"),
        ({"r": 4}, "not of rank 4"),
    ],
)
def test_what_the_rotation_cannot_say_is_refused(published, tmp_path, config, error):
    with pytest.raises(PastoError, match=error):
        antipasto_format.read_original(damaged(published, tmp_path, config))


def test_missing_and_unexpected_tensors_are_refused(published, tmp_path):
    def drop(tensors):
        del tensors["base_model.model.model.layers.1.mlp.down_proj.antipasto_rotation_params_v"]

    with pytest.raises(PastoError, match="is missing"):
        antipasto_format.read_original(damaged(published, tmp_path / "a", None, drop))

    def add(tensors):
        tensors["svd_bases.other.u"] = torch.zeros(2, 2)

    with pytest.raises(PastoError, match="unexpected tensors, such as svd_bases.other.u"):
        antipasto_format.read_original(
            damaged(published, tmp_path / "b", None, add, antipasto_format.BASES)
        )


def test_commands_work_on_what_was_imported(published, tmp_path, monkeypatch, capsys):
    """verify, export with a figure, and a clear line where a tokenizer is needed."""
    from tests.support.terminal import call

    monkeypatch.chdir(tmp_path)
    assert call(("import", published / "adapter", "--base", published / "base_model")) == 0
    assert call(("verify", "runs/latest/adapter")) == 0
    assert "largest difference -1: 0.0e+00" in capsys.readouterr().out
    assert call(("export", "--coeff", "1")) == 0
    assert "logits within" in capsys.readouterr().out
    assert call(("push", "me/dial", "--dry-run")) == 0
    assert "imported from" in capsys.readouterr().out
    assert call(("report", "runs/latest")) == 1  # texts cannot be made
    capsys.readouterr()
    assert call(("generate", "Hello")) == 1
    assert "has no tokenizer" in capsys.readouterr().err
    weights = tmp_path / "runs" / "latest" / "adapter" / "adapter.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.down_proj.theta"][0, 1] += 1e-6
    save_file(tensors, weights)
    assert call(("verify", "runs/latest/adapter")) == 1
    assert "not the file that pasto.json was written with" in capsys.readouterr().err
