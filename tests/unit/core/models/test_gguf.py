"""GGUF files, with a cache and without one."""

import errno
import os
from pathlib import Path

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models import gguf
from pasto_cli.core.models.loading import load_chat, load_model
from pasto_cli.core.recipe.schema import ModelSpec
from tests.support.gguf_model import write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path


def weights(lm):
    return {name: x.clone() for name, x in lm.model.state_dict().items()}


def test_without_a_cache_the_weights_are_the_same(file, tmp_path, monkeypatch):
    spec = ModelSpec(source=str(file), device="cpu")
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "whole"))
    cached = load_model(spec)
    assert len(list((tmp_path / "whole" / "gguf").iterdir())) == 1
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "full"))
    real, said = gguf._write, []

    def full(folder, model, tokenizer):
        def save_pretrained(scratch):
            (Path(scratch) / "config.json").write_text("{}")
            raise Exception("No space left on device (os error 28)")  # as tokenizers say it

        tokenizer.save_pretrained = save_pretrained
        real(folder, model, tokenizer)

    monkeypatch.setattr(gguf, "_write", full)
    found = load_model(spec, said.append)
    assert os.listdir(tmp_path / "full" / "gguf") == []
    assert any("No space left" in line and "PASTO_CACHE" in line for line in said)
    assert found.commit == cached.commit and found.commit.startswith("sha256:")
    assert found.model.config._attn_implementation == cached.model.config._attn_implementation
    expected, got = weights(cached), weights(found)
    assert expected.keys() == got.keys()
    assert all(torch.equal(x, got[name]) for name, x in expected.items())
    prompt = cached.chat.prompt("Hello there.")
    assert found.chat.prompt("Hello there.") == prompt
    assert load_chat(spec).prompt("Hello there.") == prompt


def test_a_cache_that_is_a_file_is_named_before_the_model_is_read(file, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_read", lambda _: pytest.fail("read"))
    with pytest.raises(PastoError, match="cannot make the cache folder") as error:
        load_model(ModelSpec(source=str(file)))
    assert "PASTO_CACHE" in error.value.hint


def test_a_file_that_cannot_be_read_is_named(file, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PastoError, match=r"m.gguf: cannot be read \(Permission denied\)"):
        load_model(ModelSpec(source=str(file)))
