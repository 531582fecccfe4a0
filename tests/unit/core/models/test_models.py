"""Loading, writers, chats: real weights or an error, exact paths, one BOS."""

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models import loaded
from pasto_cli.core.models.chat import PLAIN_TEMPLATE, Chat, tokenise_pairs
from pasto_cli.core.models.devices import layer_precision, pick_device
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.models.residual_writers import find_writers, place_writers
from pasto_cli.core.pairs.pairs import Pair
from pasto_cli.core.recipe.schema import ModelSpec
from tests.support.variants import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_writers_are_two_a_layer_and_dense(tiny, name):
    lm = tiny(name)
    writers = find_writers(lm.model)
    assert [w.layer for w in writers] == [i for i in range(8) for _ in range(2)]
    for w in writers:
        dense = dense_weight(w.module)
        assert dense.shape[0] == lm.hidden_size and dense.dtype == torch.float32
        x = torch.randn(3, dense.shape[1])
        with torch.no_grad():
            bias = w.module.bias if w.module.bias is not None else 0.0
            error = (w.module(x) - (x @ dense.T + bias)).abs().max() / dense.norm()
        assert error < (1e-5 if "8bit" not in name else 2e-2)


def test_4bit_weights_stay_as_they_are_after_inference(tiny):
    """bitsandbytes would repack them for a bfloat16 kernel on the first forward on some
    processors."""
    lm = tiny("llama-4bit")
    module = find_writers(lm.model)[3].module
    before = module.weight.data.clone()
    with torch.no_grad():
        lm.model(input_ids=torch.arange(40, 60)[None])
    assert torch.equal(module.weight.data, before)


def test_placement_spreads_evenly_over_the_named_layers(tiny):
    writers = find_writers(tiny().model)
    assert [w.layer for w in place_writers(writers, 8, 0.25, 0.5, 99)] == [2, 2, 3, 3]
    assert [w.layer for w in place_writers(writers, 8, 0.0, 1.0, 3)] == [0, 4, 7]
    with pytest.raises(PastoError, match="no writer in layers"):
        place_writers(writers, 8, 0.5, 0.5, 9)


def test_models_without_writers_are_refused_with_what_was_looked_for(tiny):
    with pytest.raises(PastoError, match="no decoder layers found; looked for model.layers"):
        find_writers(torch.nn.Linear(2, 2))


def test_text_tower_of_a_multimodal_checkpoint_has_its_real_weights(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from pasto_cli.core.models.forward import settle_packing
    from pasto_cli.core.models.random_models import byte_tokenizer

    config = Gemma3Config(
        text_config=dict(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=300,
            intermediate_size=48,
            sliding_window=16,
            query_pre_attn_scalar=16,
        ),
        vision_config=dict(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=28,
            patch_size=14,
        ),
        image_token_index=299,
        boi_token_index=298,
        eoi_token_index=297,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = load_model(ModelSpec(source=str(tmp_path), device="cpu"))
    settle_packing(lm)
    ids = torch.arange(10, 50)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            lm.model(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=0, atol=1e-5
        )
    assert len(find_writers(lm.model)) == 8


def test_missing_weights_are_an_error_not_random(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    from pasto_cli.core.models.random_models import byte_tokenizer

    tiny().model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PastoError, match=r"1 weights are not in the checkpoint.*down_proj"):
        load_model(ModelSpec(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("random:lama", "no random model"),
        ("./nowhere", "no such folder"),
        ("/nowhere/x.gguf", "no such GGUF file"),
        ("package:not_installed/x.gguf", "not installed"),
        ("nobody/has-this-model", "Hub"),
    ],
)
def test_sources_that_do_not_load_say_what_to_do(source, expected):
    with pytest.raises(PastoError) as caught:
        load_model(ModelSpec(source=source))
    assert expected in str(caught.value) and caught.value.hint


def test_a_folder_that_is_no_model(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(PastoError, match="not a causal language model"):
        load_model(ModelSpec(source=str(tmp_path)))


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(PastoError, match="this machine has none"):
        pick_device("cuda")


def test_running_out_of_memory_is_a_clear_error():
    with pytest.raises(PastoError, match="out of memory"), enough_memory("Use less."):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="other"), enough_memory("Use less."):
        raise RuntimeError("other")


def test_layer_precision_is_put_back(tiny):
    lm = tiny()
    with pytest.raises(ValueError), layer_precision(lm, "bfloat16") as on:
        assert on and lm.autocast
        raise ValueError
    assert not lm.autocast


def test_the_heads_backward_pass_in_low_precision(tiny):
    """Under autocast it rounds as bfloat16 does, in a half-precision model it goes through float32
    in parts."""
    lm, low = tiny(), load_model(ModelSpec(source="random:llama", dtype="bfloat16", device="cpu"))
    by_logits = torch.randn(
        5,
        lm.head(torch.zeros(1, lm.hidden_size)).shape[-1],
        generator=torch.Generator().manual_seed(0),
    )
    logits, weight = by_logits, lm.model.get_output_embeddings().weight
    expected = by_logits @ weight
    torch.testing.assert_close(lm.head_gradient(logits, by_logits), expected)
    stacked = torch.stack([by_logits, by_logits.flip(0)])
    for model in (lm, low):
        both = model.head_gradient(logits, stacked)
        for found, alone in zip(both, stacked, strict=True):
            torch.testing.assert_close(found, model.head_gradient(logits, alone))
    torch.testing.assert_close(
        low.head_gradient(logits, by_logits),
        expected,
        rtol=0,
        atol=0.02 * expected.abs().max().item(),
    )
    with layer_precision(lm, "bfloat16"):
        near = lm.head_gradient(logits, by_logits)
        assert not torch.equal(near, expected)
        torch.testing.assert_close(near, expected, rtol=0, atol=0.02 * expected.abs().max().item())
    assert lm.low_head is None


def test_models_without_a_chat_template_get_the_plain_one(tiny):
    chat = tiny().chat
    assert chat.tokenizer.chat_template == PLAIN_TEMPLATE
    assert chat.text("Hi") == "### User\nHi\n\n### Assistant\n"
    assert (
        Chat(chat.tokenizer, "Be brief.").text("Hi").startswith("### System\nBe brief.\n\n### User")
    )


def test_no_double_bos(tiny):
    chat = Chat(tiny().tokenizer)
    original = chat.tokenizer.chat_template
    try:
        chat.tokenizer.chat_template = "{{ bos_token }}" + PLAIN_TEMPLATE
        ids = chat.prompt("Hi")
        assert ids.count(chat.tokenizer.bos_token_id) == 1 and ids[0] == chat.tokenizer.bos_token_id
    finally:
        chat.tokenizer.chat_template = original


def test_pairs_end_in_the_same_tokens_and_bad_ones_are_named(tiny):
    good = Pair(chosen="A", rejected="B", neutral="C", suffix="I went to")
    # A pair without an opening cannot be read, but made.
    empty = good.model_copy(update={"suffix": ""})
    kept, dropped = tokenise_pairs([good, empty], tiny().chat)
    assert dropped == {"empty suffix": 1}
    (pair,) = kept
    tail = pair.chosen[-pair.suffix_len :]
    assert tail == pair.rejected[-pair.suffix_len :] == pair.neutral[-pair.suffix_len :]
    assert tiny().tokenizer.decode(tail) == "I went to"


def test_a_broken_template_is_a_clear_error(tiny):
    chat = Chat(tiny().tokenizer)
    original = chat.tokenizer.chat_template
    try:
        chat.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
        with pytest.raises(PastoError, match="no system role"):
            chat.prompt("Hi")
    finally:
        chat.tokenizer.chat_template = original


@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_parts_is_the_head(tiny, monkeypatch, bias):
    """Without a gradient it runs in parts; leading axes, an uneven last part, no rows at all."""
    lm = tiny()
    head = torch.nn.Linear(lm.hidden_size, 37, bias=bias)
    monkeypatch.setattr(loaded, "CPU_HEAD_ROWS", 8)
    monkeypatch.setattr(lm.model, "get_output_embeddings", lambda: head)
    for shape in ((5,), (2, 3), (2, 0), ()):
        last = torch.randn(*shape, lm.hidden_size)
        with torch.no_grad():
            own = lm.head(last)
        assert own.shape == (*shape, 37) and not own.requires_grad
        torch.testing.assert_close(own, head(last).detach(), rtol=1e-6, atol=1e-6)
        last.requires_grad_()
        assert lm.head(last).requires_grad
