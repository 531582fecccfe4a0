"""Tiny language models with random weights and a byte tokenizer, for `random:NAME` sources.

They run the whole lifecycle in seconds without a download. Real architectures, meaningless weights:
a run on one proves that the machinery works, never that a dial does.
"""

import difflib
from typing import Any

import torch

from pasto_cli.base.errors import PastoError

# 256 bytes, three specials and an unknown token fit 260 entries.
_SIZES: dict[str, Any] = dict(
    hidden_size=64,
    num_attention_heads=4,
    num_hidden_layers=8,
    vocab_size=260,
    max_position_embeddings=4096,
)
_LLAMA: dict[str, Any] = dict(
    intermediate_size=128, num_key_value_heads=2, tie_word_embeddings=True
)


def _configs() -> dict[str, Any]:
    """Name -> configuration; one per family that the method treats in its own way."""
    from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

    return {
        "llama": LlamaConfig(**_SIZES, **_LLAMA),
        "gpt2": GPT2Config(n_embd=64, n_head=4, n_layer=8, vocab_size=260, n_positions=4096),
        "qwen3": Qwen3Config(**_SIZES, **_LLAMA, head_dim=16),
        # A window shorter than most prompts, so that the sliding layers' own mask matters.
        "gemma3": Gemma3TextConfig(
            **_SIZES, **_LLAMA, head_dim=16, sliding_window=24, query_pre_attn_scalar=16
        ),
    }


def build_random(name: str, attention: str, dtype: torch.dtype, seed: int = 0) -> tuple[Any, Any]:
    """A random model and its byte tokenizer.

    Args:
        name: `llama`, `gpt2`, `qwen3` or `gemma3`.
        attention: transformers' attention implementation.
        dtype: Dtype of the weights.
        seed: Seed of the weights.

    Returns:
        Model (float weights, evaluation mode) and tokenizer.

    Raises:
        PastoError: For an unknown name.
    """
    from transformers import AutoModelForCausalLM

    config = random_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        for parameter in model.parameters():
            # The default std of 0.02 gives near-uniform answers; larger weights give states
            # that differ by token.
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.08)
    return model.eval(), byte_tokenizer()


def random_config(name: str) -> Any:
    """The configuration of a random model.

    Raises:
        PastoError: For an unknown name.
    """
    configs = _configs()
    if name not in configs:
        near = difflib.get_close_matches(name, configs, 1)
        hint = (
            f"Did you mean random:{near[0]}?"
            if near
            else f"Known are {', '.join(f'random:{n}' for n in configs)}."
        )
        raise PastoError(f"no random model is called {name!r}", hint)
    config = configs[name]
    for special, token in (("bos_token_id", 256), ("eos_token_id", 257), ("pad_token_id", 258)):
        setattr(config, special, token)
    return config


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes and four specials: it takes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
