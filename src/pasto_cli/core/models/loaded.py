"""A loaded base model: what the method needs of it, above all its output head.

    logits = cap tanh(scale W_U h / cap),    h the hidden state after the final norm

with the scale and the cap of the few architectures that have them.

Legend: v vocabulary; leading axes are the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.linears import dense_weight, is_linear, linear_sizes
from pasto_cli.core.models.spread import is_spread_out, weight_here
from pasto_cli.core.recipe.schema import ModelSpec

HEAD_ROWS = 16_384
"""Vocabulary entries of the output head that are cast to float32 at once."""
CPU_HEAD_ROWS = 1_024
"""Vocabulary entries of a product on a CPU. A few rows times a head of 152,000 entries take a third
less time in parts whose packed form fits the cache (16 rows: 92 ms after 144; 80 rows: 307 after
354), and the numbers are the same."""

Notify = Callable[[str], None]
"""Receives one line about what is going on."""


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _product(head: Any, last: Tensor) -> Tensor:
    """What an output head gives, without a gradient in parts where that is faster."""
    learns = torch.is_grad_enabled() and last.requires_grad
    plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)
    if learns or not plain or head.weight.device.type != "cpu":
        return head(last)
    rows = last.reshape(-1, last.shape[-1])  # (n, d_model)
    logits = rows.new_empty(len(rows), head.out_features)  # (n, v)
    weight = head.weight.detach()
    for start in range(0, head.out_features, CPU_HEAD_ROWS):
        part = slice(start, start + CPU_HEAD_ROWS)
        torch.mm(rows, weight[part].T, out=logits[:, part])
    if head.bias is not None:
        logits += head.bias.detach()
    return logits.view(*last.shape[:-1], head.out_features)


@dataclass
class LoadedModel:
    """A base model, ready for the method; it is never changed outside a context manager."""

    model: Any
    tokenizer: Any
    chat: Chat
    spec: ModelSpec
    commit: str | None
    """Commit of the Hub revision, where it came from there; for a GGUF file `sha256:` and its
    hash."""
    layers: nn.ModuleList = field(repr=False)
    trees: bool = True
    """Whether token trees are exact on this model; False uses padded rows."""
    autocast: bool = False
    """Whether passes over trees compute the layers in bfloat16 (see `layer_precision`)."""
    low_weights: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict, repr=False)
    """Linear weights of the layers and their copies in bfloat16, while `autocast` is on and since
    a pass was run (`low_layers`)."""
    low_head: Tensor | None = field(default=None, repr=False)
    """The output head in bfloat16, while `autocast` is on and gradients are wanted."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_input_embeddings().weight.device

    @property
    def has_weights(self) -> bool:
        """Whether it can run, and is not only a skeleton."""
        return self.device.type != "meta"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def trunk(self) -> Any:
        """What gives hidden states after the final norm: the model without its output head."""
        inner = self.model.base_model
        # The prefix of some classes (Llama 4) names nothing of theirs: `base_model` is all of it.
        return inner if inner is not self.model else self.model.model

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream; embeddings may be narrower (OPT projects them)."""
        width = getattr(self.model.config.get_text_config(), "hidden_size", None)
        return width or self.model.get_input_embeddings().weight.shape[1]

    def readout(self) -> Tensor:
        """What the output head reads of the residual stream: (v, d_model) float32, on the cpu.

        Raises:
            PastoError: If the head is of another width, and no projection leads to it.
        """
        module = self.model.get_output_embeddings()
        with weight_here(module):
            head = module.weight.detach().cpu().float()
        if head.shape[1] == self.hidden_size:
            return head
        inside = set(self.layers.modules())
        for module in self.trunk.modules():
            sizes = (self.hidden_size, head.shape[1])
            if module not in inside and is_linear(module) and linear_sizes(module) == sizes:
                return head @ dense_weight(module).cpu()  # (v, d_out) (d_out, d_model)
        raise PastoError(
            f"{type(self.model).__name__}: its output head reads {head.shape[1]} numbers, its "
            f"residual stream has {self.hidden_size}, and nothing projects one on the other",
            "Choose another model.",
        )

    def depth_index(self, fraction: float) -> int:
        """Number of layers before the loss depth: floor(fraction L), at least 1."""
        return max(1, int(fraction * len(self.layers)))

    def fixed_prompt(self, text: str) -> list[int]:
        """Token ids on which logits are compared.

        A base without a tokenizer gets some of its own tokens.
        """
        return self.chat.prompt(text) if self.tokenizer is not None else list(range(1, 9))

    def head(self, last: Tensor) -> Tensor:
        """Logits (..., v), float32 or float64, of hidden states (..., d_model) after the norm."""
        head = self.model.get_output_embeddings()
        if is_spread_out(self.model):  # the head may stand elsewhere
            with weight_here(head):
                return self._logits(head, last.to(head.weight.device)).to(last.device)
        return self._logits(head, last)

    def _logits(self, head: Any, last: Tensor) -> Tensor:
        if self.dtype in (torch.float32, torch.float64) or head.weight.dtype != self.dtype:
            logits = at_least_single(_product(head, last.to(self.dtype)))
        else:
            # In half precision logits near 30 would be rounded to 0.1: multiply in float32, a part
            # of the vocabulary at a time, since a whole head in float32 may not fit.
            rows = last.float()
            parts = [rows @ part.float().T for part in head.weight.split(HEAD_ROWS)]
            logits = torch.cat(parts, dim=-1)  # (..., v)
            if getattr(head, "bias", None) is not None:
                logits = logits + head.bias.float()
        config = self.model.config.get_text_config()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def head_gradient(self, logits: Tensor, by_logits: Tensor) -> Tensor:
        """The gradient by the hidden states from the one by the logits: `head` backwards.

        Written out, so that the caller need not keep vocabulary-wide tensors for autograd. Where
        the layers run in bfloat16, so do they backwards, and so does this product.

        Args:
            logits: (..., v), what `head` gave.
            by_logits: (..., v), or several of them, stacked before that.

        Returns:
            (..., d_model), in the dtype of the logits.
        """
        config = self.model.config.get_text_config()
        if cap := getattr(config, "final_logit_softcapping", None):
            # d tanh(x) = 1 - tanh(x)^2, and logits / cap is that tanh.
            by_logits = by_logits * (1.0 - (logits / cap).square())
        scale = getattr(config, "logit_scale", None) or 1.0
        scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
        weight = self.model.get_output_embeddings().weight
        home = by_logits.device
        by_logits = by_logits.to(weight.device)  # of a model that is spread out
        if self.autocast:
            low = weight.detach().bfloat16() if self.low_head is None else self.low_head
            self.low_head = low
            found = (by_logits.bfloat16() @ low).float()
        elif weight.dtype == by_logits.dtype:
            found = by_logits @ weight.detach()
        else:
            parts = zip(
                weight.detach().split(HEAD_ROWS), by_logits.split(HEAD_ROWS, dim=-1), strict=True
            )
            found = torch.stack([by @ part.to(by.dtype) for part, by in parts]).sum(0)
        found = found.to(home)
        return found if scale == 1.0 else found * scale
