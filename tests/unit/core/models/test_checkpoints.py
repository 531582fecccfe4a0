"""What is wrong with the files of a model is named, with the file; so is what is quantised."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models import four_bit
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.recipe.schema import ModelSpec


def write(folder, width):
    """A model of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a model."""
    return write(tmp_path_factory.mktemp("whole"), 32)


@pytest.fixture
def model(whole, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole, tmp_path / "model")


def load(folder, **spec):
    return load_model(ModelSpec(source=str(folder), device="cpu", **spec))


def change(folder, **facts):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | facts))


def test_a_lora_is_named_with_its_base(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(PastoError, match="is a LoRA adapter of org/base") as caught:
        load(model)
    assert "Merge" in caught.value.hint


def test_an_adapter_of_pasto_is_no_model(model):
    (model / "pasto.json").write_text("{}")
    with pytest.raises(PastoError, match="is an adapter of pasto"):
        load(model)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(model, name):
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(PastoError, match=f"{name} is a pointer of Git LFS") as caught:
        load(model)
    assert "lfs pull" in caught.value.hint


def test_missing_files_are_named(model):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    with pytest.raises(PastoError, match=r"1 of 2 files .* missing: model-2\.safetensors"):
        load(model)
    (model / "model.safetensors.index.json").unlink()
    (model / "model-1.safetensors").unlink()
    with pytest.raises(PastoError, match="it holds no weights"):
        load(model)
    (model / "config.json").unlink()
    with pytest.raises(PastoError, match=r"config\.json is missing"):
        load(model)


@pytest.mark.parametrize("kept", [100, -1000])
def test_a_file_that_ends_early_is_named(model, kept):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PastoError, match=r"model\.safetensors is damaged"):
        load(model)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_named(model, value):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = float(value)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PastoError, match=r"layers\.1\.mlp\.down_proj\.weight .* not finite"):
        load(model)


def test_states_that_overflow_in_float16_are_named_with_the_module(model):
    from pasto_cli.core.models.forward import settle_packing

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e6
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    settle_packing(load(model))
    with pytest.raises(PastoError, match=r"not finite|overflows in float16") as caught:
        settle_packing(load(model, dtype="float16"))
    assert "model.layers.1" in caught.value.message


def test_tokens_beyond_the_embedding_and_texts_beyond_the_positions_are_named(model):
    lm = load(model)
    with pytest.raises(PastoError, match="longer|too long.* 64 positions"):
        lm.chat.encode("a" * 65)
    assert lm.chat.room(60, 100) == 4
    lm.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(PastoError, match="token 260 .'<extra>'., the model's embedding 260 rows"):
        lm.chat.encode("<extra>")


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", "of_next_year"])
def test_formats_that_cannot_be_taken_apart_are_refused_by_name(model, method):
    change(model, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(PastoError, match=f"published quantised .{method}") as caught:
        load(model)
    assert "4bit" in caught.value.hint


@pytest.mark.parametrize("blocks", [None, [16, 16]])
def test_float8_is_read_with_its_scales(model, blocks):
    plain = load(model).model.state_dict()
    tensors = load_file(model / "model.safetensors")
    for name in [n for n in tensors if "proj" in n]:
        weight = tensors[name]
        rows, columns = blocks or weight.shape
        parts = weight.reshape(32 // rows, rows, 32 // columns, columns)
        scale = parts.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (parts / scale).reshape(32, 32).to(torch.float8_e4m3fn)
        scale = scale.reshape(32 // rows, 32 // columns)
        own = scale if blocks else scale.reshape(())
        tensors[f"{name.removesuffix('weight')}weight_scale_inv"] = own.contiguous()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    change(
        model,
        quantization_config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": blocks,
        },
    )
    said = []
    lm = load_model(ModelSpec(source=str(model), device="cpu"), said.append)
    assert said == ["published in fp8: dequantised to float32"]
    for name, weight in lm.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert (weight - plain[name]).norm() < 0.05 * plain[name].norm(), name
    with pytest.raises(PastoError, match="cannot be quantised once more"):
        load(model, quantization="4bit")


def test_a_model_published_in_4bit_is_taken_as_it_is(tmp_path):
    from pasto_cli.core.models.linears import dense_weight
    from pasto_cli.core.models.residual_writers import find_writers

    model = write(tmp_path / "plain", 64)  # rows as long as a block: see the next test
    plain = load(model)
    load(model, quantization="4bit").model.save_pretrained(tmp_path / "small")
    byte_tokenizer().save_pretrained(tmp_path / "small")
    lm = load(tmp_path / "small")
    assert lm.spec.quantization == "4bit"
    for writer, own in zip(find_writers(lm.model), find_writers(plain.model), strict=True):
        true = dense_weight(own.module)
        assert (dense_weight(writer.module) - true).norm() < 0.2 * true.norm()
    with pytest.raises(PastoError, match="published in 4bit"):
        load(tmp_path / "small", quantization="8bit")


def test_4bit_weights_that_would_not_come_back_are_refused(whole, tmp_path, monkeypatch):
    """bitsandbytes 0.50.2 is wrong with rows of 32, half a block, on AVX512, right elsewhere."""
    from bitsandbytes import functional

    for width, wrong in ((64, False), (32, four_bit.round_trip_error(32, "cpu") > 0.15)):
        model = whole if width == 32 else write(tmp_path / "plain", width)
        if not wrong:
            load(model, quantization="4bit")
            continue
        with pytest.raises(PastoError, match="rows are 32 long, no multiple of 64"):
            load(model, quantization="4bit")
    # A processor on which it is wrong, wherever this runs.
    four_bit.round_trip_error.cache_clear()
    right = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda *args: right(*args).flip(0))
    with pytest.raises(PastoError, match="reads 4-bit weights wrongly on this cpu") as caught:
        load(whole, quantization="4bit")
    assert "8bit" in caught.value.hint
    four_bit.round_trip_error.cache_clear()


def test_experts_in_mxfp4_are_read_with_their_scales(tmp_path):
    """gpt-oss: two numbers of four bits a byte, one exponent for each 32 of them."""
    from tests.support.families import build

    model = build("gpt_oss")
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    steps = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([steps, -steps])
    expected = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, d_in, d_out = tensors.pop(name).shape
        nibbles = torch.randint(0, 16, (experts, d_out, d_in // 32, 32))
        exponents = torch.randint(121, 124, (experts, d_out, d_in // 32))
        blocks = nibbles[..., 0::2] + 16 * nibbles[..., 1::2]
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        tensors[f"{name}_scales"] = exponents.to(torch.uint8)
        dense = values[nibbles] * (exponents - 127.0).exp2()[..., None]
        expected[name] = dense.reshape(experts, d_out, d_in).mT
    assert expected
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    change(tmp_path, quantization_config={"quant_method": "mxfp4"})
    found = load(tmp_path).model.state_dict()
    for name, dense in expected.items():
        torch.testing.assert_close(found[name].float(), dense, rtol=1e-2, atol=0)
