"""What writes to the residual stream is found by structure, in every family of models."""

import pytest
import torch
from torch.nn.functional import layer_norm

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.forward import hidden_states, settle_packing
from pasto_cli.core.models.residual_writers import survey
from tests.support.families import FAMILIES, RECURRENT, build, loaded, silenced

EXPERTS = "mlp.experts"
# Layers, writers in the order of the layer's modules, what is left alone.
FOUND = {
    "qwen3_moe": [
        ([0, 2, 3], ["self_attn.o_proj"], [EXPERTS]),
        ([1], ["self_attn.o_proj", "mlp.down_proj"], []),
    ],
    "mixtral": [([0, 1, 2, 3], ["self_attn.o_proj"], [EXPERTS])],
    "gpt_oss": [([0, 1, 2, 3], ["self_attn.o_proj"], [EXPERTS])],
    "deepseek_v3": [
        ([0], ["self_attn.o_proj", "mlp.down_proj"], []),
        ([1, 2, 3], ["self_attn.o_proj", "mlp.shared_experts.down_proj"], [EXPERTS]),
    ],
    "lfm2": [
        ([0, 2, 3], ["conv.out_proj", "feed_forward.w2"], []),
        ([1], ["self_attn.out_proj", "feed_forward.w2"], []),
    ],
    "jamba": [
        ([0], ["mamba.out_proj", "feed_forward.down_proj"], []),
        ([1, 3], ["mamba.out_proj"], ["feed_forward.experts"]),
        ([2], ["self_attn.o_proj", "feed_forward.down_proj"], []),
    ],
    "nemotron_h": [
        ([0], ["mixer.out_proj"], []),
        ([1], ["mixer.o_proj"], []),
        ([2], ["mixer.down_proj"], []),
        ([3], ["mixer.shared_experts.down_proj"], ["mixer.experts"]),
    ],
    "falcon_h1": [
        ([0, 1, 2, 3], ["feed_forward.down_proj", "mamba.out_proj", "self_attn.o_proj"], [])
    ],
    "qwen3_next": [
        ([0, 2], ["linear_attn.out_proj", "mlp.shared_expert.down_proj"], [EXPERTS]),
        ([1, 3], ["self_attn.o_proj", "mlp.shared_expert.down_proj"], [EXPERTS]),
    ],
    "granitemoehybrid": [
        ([0, 2], ["shared_mlp.output_linear", "mamba.out_proj"], ["block_sparse_moe.experts"]),
        ([1, 3], ["shared_mlp.output_linear", "self_attn.o_proj"], ["block_sparse_moe.experts"]),
    ],
    "olmo2": [([0, 1, 2, 3], ["self_attn.o_proj", "mlp.down_proj"], [])],
    "granite": [([0, 1, 2, 3], ["self_attn.o_proj", "mlp.down_proj"], [])],
    "phi3": [([0, 1, 2, 3], ["self_attn.o_proj", "mlp.down_proj"], [])],
    "opt": [([0, 1, 2, 3], ["self_attn.out_proj", "fc2"], [])],
    "gpt2": [([0, 1, 2, 3], ["attn.c_proj", "mlp.c_proj"], [])],
    "gemma3": [([0, 1, 2, 3], ["self_attn.o_proj", "mlp.down_proj"], [])],
}


def law_holds(model, found) -> bool:
    """Without writers and routed experts every layer hands its residual stream on, untouched."""
    if model.config.model_type == "opt":  # its layers normalise the stream itself
        layers = model.base_model.decoder.layers
        return all(
            torch.allclose(
                _normed(_normed(x, layer.self_attn_layer_norm), layer.final_layer_norm), y
            )
            for layer, (x, y) in zip(layers, silenced(model, found), strict=True)
        )
    return all(torch.equal(before, after) for before, after in silenced(model, found))


def _normed(x, norm):
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


SLICE = ("deepseek_v3", "lfm2", "falcon_h1", "opt")
"""Each of another kind; the others run in `make test-families`."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SLICE else pytest.mark.families) for name in FOUND],
)
def test_all_that_writes_is_found(name):
    model = build(name)
    found = survey(model)
    assert [tuple(kind) for kind in found.kinds()] == FOUND[name]
    assert law_holds(model, found)
    # Less than all of it does not: the law can fail.
    assert not law_holds(model, found._replace(writers=found.writers[1:]))
    lm, said = loaded(model), []
    settle_packing(lm, said.append)
    assert lm.trees == (name not in RECURRENT)
    assert [("carry a state" in line) for line in said] == [True] * (name in RECURRENT)


def test_a_class_whose_prefix_names_nothing_of_its_own():
    """Llama 4: what stands before the head is found all the same; its chunks take no trees."""
    model = build("llama4")
    assert model.base_model is model
    lm, said = loaded(model), []
    settle_packing(lm, said.append)  # compares with the model's own logits
    assert not lm.trees and "padded" in said[0]


def test_a_window_that_is_counted_in_places_takes_no_trees():
    """GPT-Neo: short rows packed as a tree are right, and a tree beyond its window is not."""
    lm, said = loaded(build("gpt_neo")), []
    settle_packing(lm, said.append)
    assert not lm.trees and "padded" in said[0]
    start = list(range(60))
    rows = [[*start, 60 + n, *range(n, n + 9)] for n in range(40)]
    with torch.no_grad():
        plain = torch.stack([lm.model(input_ids=torch.tensor([r])).logits[0, -1] for r in rows])
        found = {i: lm.head(s.last(slice(-1, None))[0, 0]) for i, s in hidden_states(lm, rows, 512)}
        own = torch.stack([found[i] for i in range(len(rows))])
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)
        lm.trees = True  # what would be wrong
        tree = {i: lm.head(s.last(slice(-1, None))[0, 0]) for i, s in hidden_states(lm, rows, 512)}
        assert (torch.stack([tree[i] for i in range(len(rows))]) - plain).abs().max() > 0.01


@pytest.mark.families
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FOUND])
def test_the_law_holds_in_families_that_are_not_in_the_table(name):
    model = build(name)
    assert law_holds(model, survey(model))


def test_a_model_in_which_only_routed_experts_write_is_refused_by_name():
    from transformers import JetMoeConfig, JetMoeForCausalLM

    config = JetMoeConfig(
        hidden_size=64,
        num_hidden_layers=2,
        vocab_size=260,
        num_key_value_heads=2,
        kv_channels=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        intermediate_size=96,
    )
    with pytest.raises(PastoError, match=r"mlp\.output_linear.* do, which are routed experts"):
        survey(JetMoeForCausalLM(config).requires_grad_(False))
