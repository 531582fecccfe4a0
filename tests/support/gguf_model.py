"""A llama in one GGUF file, with random weights, small enough to be read in a moment."""

from pathlib import Path

import numpy as np

WIDTH, LAYERS, HEADS, INNER = 16, 1, 2, 16
LETTERS = [chr(c) for c in range(33, 127)]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]


def write_gguf(path: Path) -> None:
    """Write it."""
    from gguf import GGUFWriter

    out = GGUFWriter(path, "llama")
    out.add_context_length(512)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(TOKENS))
    out.add_tokenizer_model("llama")
    out.add_token_list(TOKENS)
    out.add_token_scores([0.0] * 3 + [-1.0] * 256 + [-float(i) for i in range(len(LETTERS) + 1)])
    out.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(LETTERS) + 1))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> None:
        out.add_tensor(name, random.standard_normal(shape).astype(np.float32) * 0.3)

    weight("token_embd.weight", len(TOKENS), WIDTH)
    weight("output.weight", len(TOKENS), WIDTH)
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        weight(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        weight(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        weight(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def header_bytes(path: Path) -> int:
    """Bytes before the weights."""
    from gguf import GGUFReader

    return min(int(tensor.data_offset) for tensor in GGUFReader(path).tensors)
