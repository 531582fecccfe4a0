"""Models of real shapes with random weights, for time and memory without their weights.

Configurations as published with google/gemma-3-1b-it and Qwen/Qwen3-4B (their config.json).
"""

import dataclasses
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.residual_writers import decoder_layers

SHAPES: dict[str, Any] = {
    "gemma-3-1b": Gemma3TextConfig(
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=262_144,
        sliding_window=512,
        query_pre_attn_scalar=256,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
}


def random_weights(shape: str, like: LoadedModel) -> LoadedModel:
    """A model of a shape, with the tokenizer, the device and the dtype of another one."""
    with torch.random.fork_rng(devices=[]), like.device:
        torch.manual_seed(0)
        attention = like.model.config._attn_implementation
        model: Any = AutoModelForCausalLM.from_config(
            SHAPES[shape], attn_implementation=attention, dtype=like.dtype
        )
    model = model.eval().requires_grad_(False)
    return dataclasses.replace(like, model=model, layers=decoder_layers(model)[1], low_head=None)
