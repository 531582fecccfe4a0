"""One table of variants: a new model, kind, bound, direction, subspace or loss is a row
here, and every generic test runs on it."""

MODELS = {
    "llama": {"source": "random:llama"},
    "gpt2": {"source": "random:gpt2"},
    "qwen3": {"source": "random:qwen3"},
    "gemma3": {"source": "random:gemma3"},
    "gemma3-eager": {"source": "random:gemma3", "attention": "eager"},
    "llama-4bit": {"source": "random:llama", "quantization": "4bit"},
    "llama-8bit": {"source": "random:llama", "quantization": "8bit"},
}
FLOAT_MODELS = [name for name in MODELS if "bit" not in name]
KINDS = ("cayley", "lora")
BOUNDS = ("spectral", "entrywise")
DIRECTIONS = ("residual", "activation", "top", "random")
SUBSPACES = (
    "taskdiff",
    "suppressed",
    "write",
    "logits_read",
    "random",
    "taskdiff & suppressed & write",
    "taskdiff & write & ~logits_read",
)
LOSSES = {
    "pasto": {},
    "original": "original",
    "paper": {
        "projection": {"kind": "symlog"},
        "coherence": {"barrier": "log", "aggregate": "lse"},
    },
    "max": {"coherence": {"aggregate": "max"}},
    "orth": {"projection": {"orth_weight": 0.1}},
    "no-constraints": {"coherence": {"weight": 0}, "monotonicity": {"weight": 0}},
}
