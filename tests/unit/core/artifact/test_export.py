"""Exports: stock peft and llama.cpp's own reader see the dial's very change."""

import json

import gguf
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.errors import PastoError
from pasto_cli.core.artifact import export
from pasto_cli.core.steering.steerer import AdapterSteerer
from tests.support.examples import examples
from tests.support.variants import KINDS

IDS = torch.arange(40, 70)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def steered(lm, adapter, a):
    with adapter.at(lm.model, a):
        return logits(lm.model)


@pytest.fixture()
def fresh():
    """A base of its own: peft puts its layers into the model that it wraps."""
    from pasto_cli.core.models.loading import load_model
    from pasto_cli.core.recipe.schema import ModelSpec

    return lambda **spec: load_model(ModelSpec(device="cpu", **spec))


@pytest.mark.parametrize(
    "spec",
    [
        {"source": "random:llama"},
        {"source": "random:gpt2"},
        {"source": "random:llama", "quantization": "4bit"},
    ],
    ids=["Linear", "Conv1D", "4-bit"],
)
def test_stock_peft_gives_the_dials_logits(fresh, make_adapter, tmp_path, spec):
    lm = fresh(**spec)
    adapter = make_adapter(lm)
    base = logits(lm.model)
    expected = {}
    for a in (1.0, -1.0, 0.4):
        expected[a] = steered(lm, adapter, a)
        (tmp_path / f"{a:g}").mkdir()
        export.save_lora(tmp_path / f"{a:g}", lm, export.low_rank(adapter, a))
    model = peft.PeftModel.from_pretrained(lm.model, tmp_path / "1", adapter_name="10")
    for a in (-1.0, 0.4):
        model.load_adapter(tmp_path / f"{a:g}", adapter_name=str(round(10 * a)))
    for a in (1.0, -1.0, 0.4, 1.0):
        model.set_adapter(str(round(10 * a)))
        torch.testing.assert_close(logits(model), expected[a], rtol=0, atol=1e-4)
        assert (expected[a] - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("source", ["random:llama", "random:gpt2"])
def test_one_export_of_the_linear_kind_serves_any_coefficient(
    fresh, make_adapter, tmp_path, source
):
    """By the scale that stock peft gives it."""
    lm = fresh(source=source)
    adapter = make_adapter(lm, kind="lora")
    base = logits(lm.model)
    expected = {a: steered(lm, adapter, a) for a in (1.0, -1.0, 0.4, 2.0)}
    export.save_lora(tmp_path, lm, export.low_rank(adapter, 1.0))
    model = peft.PeftModel.from_pretrained(lm.model, tmp_path, adapter_name="dial")
    for a, wanted in expected.items():
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scaling["dial"] = a
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4)
        assert (wanted - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@examples(20)
@given(a=st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
def test_the_change_of_the_linear_kind_is_its_two_matrices(a):
    from pasto_cli.core.steering.lora import LoraAdapter, LoraPair

    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(6, 3, generator=generator), torch.randn(3, 5, generator=generator)
    (factor,) = export.low_rank(LoraAdapter({"0": LoraPair(first, second)}), a).values()
    assert torch.equal(factor.a, first.T) and factor.b.shape == (5, 3)
    torch.testing.assert_close(factor.b, a * second.T, rtol=1e-6, atol=0)


def test_modules_of_different_ranks(fresh, make_adapter, tmp_path):
    """Peft's rank_pattern names what deviates."""
    lm = fresh(source="random:llama")
    adapter = make_adapter(lm, rank=12)
    factors = export.low_rank(adapter, 1.0)
    path = next(iter(factors))
    factors[path] = export.LowRank(
        factors[path].a[:5].contiguous(), factors[path].b[:, :5].contiguous()
    )
    export.save_lora(tmp_path, lm, factors)
    expected = lm.model.get_submodule(path).weight + factors[path].b @ factors[path].a
    model = peft.PeftModel.from_pretrained(lm.model, tmp_path).merge_and_unload()
    torch.testing.assert_close(model.get_submodule(path).weight, expected)
    export.save_gguf_lora(tmp_path / "x.gguf", lm, factors)
    read = gguf.GGUFReader(tmp_path / "x.gguf")
    alpha = read.fields["adapter.lora.alpha"].contents()
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in read.tensors}
    for name in (name for name in tensors if name.endswith("lora_b")):
        a, b = tensors[name.replace("lora_b", "lora_a")], tensors[name]
        # llama.cpp scales a module by alpha over its own rank.
        made = b @ a * (alpha / len(a))
        assert any(
            made.shape == (f.b @ f.a).shape and torch.allclose(made, f.b @ f.a, atol=1e-6)
            for f in factors.values()
        )


@examples(20)
@given(a=st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
def test_the_change_is_the_dense_formula(tiny, a):
    """dW = U (R diag(S + a delta) - diag(S))^T V^T, solved densely."""
    from pasto_cli.core.models.linears import dense_weight
    from pasto_cli.core.models.residual_writers import find_writers
    from pasto_cli.core.recipe.schema import AdapterSpec
    from pasto_cli.core.steering.cayley import bounded_skew
    from pasto_cli.core.steering.factors import decompose, select_directions
    from pasto_cli.core.steering.kinds import create_adapter

    writer = find_writers(tiny().model)[3]
    kept = select_directions(decompose(dense_weight(writer.module)), torch.arange(9))
    adapter = create_adapter(
        {writer.path: kept}, AdapterSpec(rank=9, init_theta_std=0.3, init_delta_mean=0.1), 0
    )
    rotation = adapter.items()[0][1]
    skew = bounded_skew(rotation.theta.detach(), adapter.bound, adapter.max_angle).double()
    eye = torch.eye(9, dtype=torch.float64)
    r = torch.linalg.inv(eye - a * skew / 2) @ (eye + a * skew / 2)
    m = r @ torch.diag(kept.s.double() + a * rotation.delta.detach().double()) - torch.diag(
        kept.s.double()
    )
    expected = kept.u.double() @ m.T @ kept.v.double().T
    (factor,) = export.low_rank(adapter, a).values()
    torch.testing.assert_close(
        factor.b.double() @ factor.a.double(),
        expected,
        rtol=0,
        atol=1e-5 * expected.abs().max().item(),
    )


def test_scaling_one_export_is_not_another_coefficient(tiny, make_adapter):
    adapter = make_adapter(tiny(), scale=0.3)
    dense = {a: [f.b @ f.a for f in export.low_rank(adapter, a).values()] for a in (1.0, 0.5, -1.0)}
    for a in (0.5, -1.0):
        off = [
            ((a * one - exact).norm() / exact.norm()).item()
            for one, exact in zip(dense[1.0], dense[a], strict=True)
        ]
        assert min(off) > 0.02


def test_coefficient_0_has_no_export(tiny, make_adapter):
    with pytest.raises(PastoError, match="nothing to export"):
        export.low_rank(make_adapter(tiny()), 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spec", [{"source": "random:llama"}, {"source": "random:llama", "quantization": "4bit"}]
)
def test_merged_weights_are_a_model_of_their_own(fresh, make_adapter, tmp_path, spec, kind):
    from transformers import AutoModelForCausalLM

    lm = fresh(**spec)
    adapter = make_adapter(lm, kind=kind)
    expected = steered(lm, adapter, -1.0)
    plain = export.dequantised(lm)
    assert plain.spec.quantization == "none" and export.dequantised(plain) is plain
    before = {name: x.clone() for name, x in plain.model.state_dict().items()}
    export.save_merged(tmp_path / "1", plain, [(adapter, 1.0)])
    tmp_path = tmp_path / "-1"
    export.save_merged(tmp_path, plain, [(adapter, -1.0)])
    after = plain.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not getattr(merged, "is_quantized", False)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-4)


def test_a_quantised_base_is_not_merged_unasked(fresh, make_adapter, tmp_path):
    lm = fresh(source="random:llama", quantization="4bit")
    model = lm.model
    with pytest.raises(PastoError, match="a quantised base cannot be baked"):
        export.save_merged(tmp_path, lm, [(make_adapter(lm), 1.0)])
    assert lm.model is model and model.hf_quantizer is not None


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_gguf_adapter_reads_back_under_llama_cpps_names(tiny, make_adapter, tmp_path, name):
    lm = tiny(name)
    factors = export.low_rank(make_adapter(lm), 1.0)
    path = tmp_path / "dial.gguf"
    export.save_gguf_lora(path, lm, factors)
    reader = gguf.GGUFReader(path)
    fields = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF")
    }
    assert fields == {
        "general.architecture": name,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,
    }
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    assert len(tensors) == 2 * len(factors)
    for module, factor in factors.items():
        layer = int(module.split(".")[2])
        part = "attn_output" if "attn" in module else "ffn_down"
        assert torch.equal(tensors[f"blk.{layer}.{part}.weight.lora_a"], factor.a)
        assert torch.equal(tensors[f"blk.{layer}.{part}.weight.lora_b"], factor.b)


def test_the_difference_it_reports_is_that_of_the_factors(tiny, make_adapter):
    lm = tiny()
    adapter = make_adapter(lm)
    factors = export.low_rank(adapter, 1.0)
    off, scale = export.largest_difference(lm, AdapterSteerer(adapter, lm), 1.0, factors)
    assert off < 1e-4 < scale
    wrong = {path: export.LowRank(f.a, -f.b) for path, f in factors.items()}
    assert export.largest_difference(lm, AdapterSteerer(adapter, lm), 1.0, wrong)[0] > 1e-2
    assert json.dumps(off)
