"""Tiny random models of many families, to prove on each what holds for all of them."""

from typing import Any

import torch
import transformers as T
from torch import Tensor, nn

from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.models.residual_writers import Survey, decoder_layers
from pasto_cli.core.recipe.schema import ModelSpec

BASIC: dict[str, Any] = dict(
    hidden_size=64,
    num_attention_heads=4,
    num_hidden_layers=4,
    vocab_size=260,
    max_position_embeddings=2048,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=258,
)
GROUPED: dict[str, Any] = dict(**BASIC, num_key_value_heads=2, intermediate_size=96)
FAMILIES = {
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **GROUPED,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
    ),
    "qwen2_moe": lambda: T.Qwen2MoeConfig(
        **GROUPED,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "mixtral": lambda: T.MixtralConfig(**GROUPED, num_local_experts=4),
    "gpt_oss": lambda: T.GptOssConfig(
        **GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=24
    ),
    "deepseek_v3": lambda: T.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_shared_experts=1,
    ),
    "lfm2": lambda: T.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv", "conv"]),
    "jamba": lambda: T.JambaConfig(
        **GROUPED,
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=4,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "nemotron_h": lambda: T.NemotronHConfig(
        **GROUPED,
        head_dim=16,
        layers_block_type=["mamba", "attention", "mlp", "moe"],
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
        chunk_size=16,
    ),
    "falcon_h1": lambda: T.FalconH1Config(
        **GROUPED,
        head_dim=16,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=16,
    ),
    "qwen3_next": lambda: T.Qwen3NextConfig(
        **GROUPED,
        head_dim=16,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "olmo2": lambda: T.Olmo2Config(**GROUPED),
    "granite": lambda: T.GraniteConfig(
        **GROUPED, residual_multiplier=0.5, logits_scaling=2.0, embedding_multiplier=2.0
    ),
    "granitemoehybrid": lambda: T.GraniteMoeHybridConfig(
        **GROUPED,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=48,
        layer_types=["mamba", "attention"] * 2,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=16,
    ),
    "phi3": lambda: T.Phi3Config(**GROUPED),
    "opt": lambda: T.OPTConfig(
        hidden_size=64,
        word_embed_proj_dim=32,
        num_attention_heads=4,
        num_hidden_layers=4,
        vocab_size=260,
        ffn_dim=128,
        max_position_embeddings=2048,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        do_layer_norm_before=False,
    ),
    "gpt_neo": lambda: T.GPTNeoConfig(  # its window is counted in places of the sequence
        hidden_size=64,
        num_heads=4,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        window_size=256,
        vocab_size=260,
        max_position_embeddings=2048,
        bos_token_id=256,
        eos_token_id=257,
    ),
    "gpt2": lambda: T.GPT2Config(
        n_embd=64,
        n_head=4,
        n_layer=4,
        vocab_size=260,
        n_positions=2048,
        bos_token_id=256,
        eos_token_id=257,
    ),
    "gemma3": lambda: T.Gemma3TextConfig(
        **GROUPED, head_dim=16, sliding_window=24, query_pre_attn_scalar=16
    ),
    "gemma4": lambda: T.Gemma4TextConfig(
        **GROUPED,
        head_dim=16,
        global_head_dim=16,
        sliding_window=24,
        vocab_size_per_layer_input=260,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gemma4_moe": lambda: T.Gemma4TextConfig(
        **GROUPED,
        head_dim=16,
        global_head_dim=16,
        sliding_window=24,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    ),
    "llama4": lambda: T.Llama4TextConfig(
        **GROUPED,
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=64,
    ),
    "longcat_flash": lambda: T.LongcatFlashConfig(
        **{k: v for k, v in BASIC.items() if k not in ("num_hidden_layers",)},
        num_layers=2,
        ffn_hidden_size=96,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        head_dim=8,
        v_head_dim=16,
        moe_topk=2,
        n_routed_experts=4,
        zero_expert_num=1,
        expert_ffn_hidden_size=32,
    ),
    "zamba2": lambda: T.Zamba2Config(
        **{**GROUPED, "num_key_value_heads": 4},
        mamba_d_state=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=16,
        layers_block_type=["mamba", "hybrid"] * 2,
        num_mem_blocks=1,
    ),
    "mamba2": lambda: T.Mamba2Config(
        hidden_size=64,
        num_hidden_layers=4,
        vocab_size=260,
        state_size=16,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "recurrent_gemma": lambda: T.RecurrentGemmaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        vocab_size=260,
        intermediate_size=96,
        num_attention_heads=4,
        lru_width=64,
        attention_window_size=24,
    ),
    "dbrx": lambda: T.DbrxConfig(
        d_model=64,
        n_heads=4,
        n_layers=4,
        max_seq_len=2048,
        vocab_size=260,
        ffn_config=dict(ffn_hidden_size=32, moe_num_experts=4, moe_top_k=2),
        attn_config=dict(clip_qkv=8.0, kv_n_heads=2, rope_theta=10000.0),
    ),
    "falcon": lambda: T.FalconConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=4, vocab_size=260
    ),
}
RECURRENT = ("lfm2", "jamba", "nemotron_h", "falcon_h1", "qwen3_next", "granitemoehybrid")
"""Those whose layers carry a state from token to token."""


def build(name: str, seed: int = 0) -> Any:
    """A random model of a family, evaluation mode, frozen; without SDPA where it has none."""
    torch.manual_seed(seed)
    try:
        model = T.AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="sdpa")
    except ValueError:
        model = T.AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager")
    for path, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "A_log" not in path:  # decays, of which the sign matters
            torch.nn.init.normal_(parameter, std=0.08)
        if name == "mamba2" and "A_log" in path:
            parameter.data.fill_(-6.0)  # as it comes, the persona is forgotten before the answer
    return model.eval().requires_grad_(False)


def loaded(model: Any) -> LoadedModel:
    """A model as the loader returns it."""
    tokenizer = byte_tokenizer()
    layers = decoder_layers(model)[1]
    return LoadedModel(model, tokenizer, Chat(tokenizer), ModelSpec(source="test"), None, layers)


@torch.no_grad()
def silenced(model: Any, survey: Survey) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of each layer where all that is said to write to the stream gives zeros."""
    layers = decoder_layers(model)[1]
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def zero(_module: Any, _inputs: Any, output: Any) -> Any:
        return (
            tuple(map(torch.zeros_like, output))
            if isinstance(output, tuple)
            else torch.zeros_like(output)
        )

    def enter(index: int) -> Any:
        def keep(_module: Any, args: Any, kwargs: Any) -> None:
            inputs[index] = (args[0] if args else kwargs["hidden_states"]).clone()

        return keep

    def leave(index: int) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return keep

    silent = [writer.module for writer in survey.writers]
    for layer, paths in zip(layers, survey.left_alone, strict=True):
        for module in map(layer.get_submodule, paths):
            silent += list(module) if isinstance(module, nn.ModuleList) else [module]
    handles = [module.register_forward_hook(zero) for module in silent]
    for i, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(enter(i), with_kwargs=True))
        handles.append(layer.register_forward_hook(leave(i)))
    try:
        model.base_model(input_ids=torch.arange(40, 60)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(inputs[i], outputs[i]) for i in range(len(layers))]
