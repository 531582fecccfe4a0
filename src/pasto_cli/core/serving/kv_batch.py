"""Keys and values of rows that decode together, though they began at different times.

Rows are aligned at their newest token: a shorter row has zeros on its left, which the mask hides,
and its positions count from its own first token. A prompt runs without padding, beside prompts of
its own length, and joins the others with its finished keys and values.

Legend: b rows, t tokens of the longest row, h heads, d head size, v vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel, at_least_single


class KVBatch:
    """The rows' keys, values and masks.

    Args:
        lm: The base model; callers steer it around `prefill` and `step`.

    Raises:
        PastoError: If the model keeps a state other than keys and values, which has no padding.
    """

    def __init__(self, lm: LoadedModel) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self.lm = lm
        known = {DynamicLayer, DynamicSlidingWindowLayer}
        kinds = {type(layer) for layer in DynamicCache(config=lm.model.config).layers}
        if not kinds <= known:
            raise PastoError(
                f"{type(lm.model).__name__} remembers more than keys and values",
                "Export the dial and serve it with another engine (docs/serving.md).",
            )
        self.accepted = set(inspect.signature(lm.model.forward).parameters)
        self.cache: Any = None
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=lm.device)  # (b, t), 1 at tokens

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Run prompts of one length and add them after the rows that are there.

        Returns:
            Logits (number of prompts, v) of each prompt's next token.
        """
        from transformers import DynamicCache

        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.lm.device)
        mask = torch.ones_like(ids)
        # Without a configuration all layers keep all tokens, those of a sliding window too: the
        # window is in the mask then, and rows can be padded and cut in one way.
        cache: Any = DynamicCache()
        logits = self._forward(ids, mask, mask.cumsum(-1) - 1, cache)
        if self.cache is None:
            self.cache, self.mask = cache, mask
            return logits
        longest = max(self.mask.shape[1], mask.shape[1])
        for own, new in zip(self.cache.layers, cache.layers, strict=True):
            if own.is_initialized:  # layers that share another layer's keys have none
                own.keys = _joined(own.keys, new.keys, longest)
                own.values = _joined(own.values, new.values, longest)
        parts = [pad(x, (longest - x.shape[1], 0)) for x in (self.mask, mask)]
        self.mask = torch.cat(parts)  # (b + prompts, longest)
        return logits

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to every row.

        Returns:
            Logits (b, v) of the next token.
        """
        ids = torch.tensor(tokens, device=self.lm.device)[:, None]  # (b, 1)
        positions = self.mask.sum(-1, keepdim=True)  # (b, 1)
        self.mask = pad(self.mask, (0, 1), value=1)  # (b, t + 1)
        return self._forward(ids, self.mask, positions, self.cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows go, and the columns that no row needs any more."""
        if len(rows) == len(self.mask):
            return
        if not rows:
            self.cache, self.mask = None, self.mask[:0, :0]
            return
        index = torch.tensor(rows, device=self.lm.device)
        self.mask = self.mask[index]
        start = self.mask.shape[1] - int(self.mask.sum(-1).max())
        self.mask = self.mask[:, start:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[index.to(layer.keys.device), :, start:]  # (b, h, t, d)
                layer.values = layer.values[index.to(layer.values.device), :, start:]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits (rows, v) after the last of some tokens (rows, tokens)."""
        more: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        output = self.lm.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in more.items() if name in self.accepted},
        )
        return at_least_single(output.logits[:, -1])


def _joined(one: Tensor, other: Tensor, length: int) -> Tensor:
    """Two groups of rows (b, h, t, d) one under the other, padded on the left to a length."""
    return torch.cat([pad(x, (0, 0, length - x.shape[2], 0)) for x in (one, other)])
