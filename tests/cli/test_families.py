"""The life of a dial on a tiny model of each family: training, Ctrl-C, resuming, export."""

import json

import pytest
from safetensors import safe_open

from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.training import trainer
from tests.support.families import FAMILIES, build
from tests.support.terminal import TINY

BRIEF = ("--set", "training.epochs=1", "--set", "pairs.count=16", "--set", "adapter.rank=8")
EXPECTED = {
    "qwen3_moe": "self_attn.o_proj",
    "mixtral": "self_attn.o_proj",
    "gpt_oss": "self_attn.o_proj",
    "deepseek_v3": "mlp.shared_experts.down_proj",
    "lfm2": "conv.out_proj",
    "jamba": "mamba.out_proj",
    "nemotron_h": "mixer.out_proj",
    "falcon_h1": "mamba.out_proj",
    "qwen3_next": "linear_attn.out_proj",
    "granitemoehybrid": "mamba.out_proj",
    "olmo2": "mlp.down_proj",
    "granite": "mlp.down_proj",
    "phi3": "mlp.down_proj",
    "opt": "fc2",
    "gpt2": "mlp.c_proj",
    "gemma3": "mlp.down_proj",
    "longcat_flash": "mlps.0.down_proj",
    "mamba2": "mixer.out_proj",
}
"""Family -> a writer that an adapter of its first layers has."""
SLICE = ("deepseek_v3",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SLICE else pytest.mark.families) for name in EXPECTED],
)
def test_a_dial_of_each_family(pasto, tmp_path, monkeypatch, name):
    build(name).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
    real = trainer._Loop._step

    def step(self, epoch, group):
        if self.step == 1:
            raise KeyboardInterrupt
        real(self, epoch, group)

    source = ("--set", f"model.source={tmp_path / 'model'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Loop, "_step", step)
        said = pasto("train", TINY, *BRIEF, *source)
    assert said.code == 130, said.err
    assert "layers" in said.err and "writers" in said.err and EXPECTED[name] in said.err
    (run,) = (tmp_path / "runs").iterdir()
    said = pasto("train", "--resume", run)
    assert "going on after step 1" in said.err
    assert said.code == 0 or "the certificate failed" in said.error, said.err
    meta = json.loads((run / "adapter" / "pasto.json").read_text())
    assert meta["certificate"]["passed"] == (said.code == 0)
    assert any(path.endswith(EXPECTED[name]) for path in meta["base"]["fingerprints"])
    said = pasto("export", "--adapter", run, "--coeff", "1", "--json")
    assert said.code == 0, said.err
    (exported,) = json.loads(said.out)
    assert exported["difference"] <= 1e-4 * max(1.0, exported["scale"])
    with safe_open(f"{exported['path']}/adapter_model.safetensors", "pt") as tensors:
        assert any(EXPECTED[name] in key for key in tensors.keys())  # noqa: SIM118


@pytest.mark.families
def test_a_loss_depth_that_the_personas_do_not_reach_is_named(pasto, tmp_path):
    """Convolutions look two tokens back: before the first attention the end knows no persona."""
    build("lfm2").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    shallow = "adapter={rank: 8, first_layer: 0, last_layer: 0.25}"
    source = f"model.source={tmp_path / 'model'}"
    said = pasto(
        "train", TINY, *BRIEF, "--set", source, "--set", shallow, "--set", "subspace.depth=0.25"
    )
    assert said.code == 1 and "no trace" in said.error and "subspace.depth" in said.next_step


def test_every_family_of_the_table_is_built():
    assert set(EXPECTED) <= set(FAMILIES)
