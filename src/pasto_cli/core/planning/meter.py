"""Counts bytes, multiplications and memory traffic of code that runs on tensors without storage.

On torch's `meta` device every operation works out shapes and no numbers. What is alive at once,
what autograd keeps and what a backward pass makes are then those of the real run, whatever the
architecture: a plan runs the code of the training itself instead of a formula that would grow old.

Legend: b batch rows, h attention heads, t queries, u keys, e width of a head.
"""

import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_ATEN: Any = torch.ops.aten
_FLASH: Any = _ATEN._scaled_dot_product_flash_attention_for_cpu


class Meter(TorchDispatchMode):
    """Inside this context the tensors on `meta` are counted; reading one as a number gives 1."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes of the tensors that are alive and were made here."""
        self.peak = 0
        """The most that `now` has been since the last `restart`."""
        self.operations: Counter[torch.dtype] = Counter()
        """Floating-point operations of matrix products since the last `restart`, by the dtype of
        what is multiplied; a multiplication and an addition are two."""
        self.moved = 0
        """Bytes that everything else reads and writes since then, without views and casts (a half
        model, which stands for layers in bfloat16, casts its head where a single one need not)."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def restart(self) -> None:
        """Measure peak, operations and traffic anew, from what is alive now."""
        self.peak, self.operations, self.moved = self.now, Counter(), 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it makes."""
        if func is _ATEN._local_scalar_dense.default and args[0].is_meta:
            return 1.0  # there is no number; where one is read for a log, any will do
        found = func(*args, **(kwargs or {}))
        if count := _operations(func, args):
            self.operations[_tensors(args)[0].dtype] += count
        elif func is not _ATEN._to_copy.default and not func.is_view:
            read = _tensors((args, kwargs))  # what makes a tensor of nothing is not counted
            self.moved += sum(x.nbytes for x in (*read, *(_tensors(found) if read else ())))
        for item in (found,) if isinstance(found, Tensor) else tree_iter(found):
            if isinstance(item, Tensor) and item.is_meta:
                self._count(item)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 (views share it)
        if key in self._alive:
            return
        size = storage.nbytes()
        # Torch keeps the Python object of a storage as long as the storage itself.
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, Tensor) and x.is_meta]


def _operations(func: Any, args: Sequence[Any]) -> int:
    """Floating-point operations of a matrix product; 0 for anything else."""
    if func is _ATEN.mm.default or func is _ATEN.bmm.default:
        left, right = args[:2]
    elif func is _ATEN.addmm.default or func is _ATEN.baddbmm.default:
        left, right = args[1:3]
    elif func is _FLASH.default:
        query, key = args[:2]  # (b, h, t, e), (b, h, u, e): scores, then values
        return 4 * query.numel() * key.shape[-2]
    elif func is _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default:
        query, key = args[1:3]
        return 10 * query.numel() * key.shape[-2]  # scores again, and a gradient by each of four
    else:
        return 0
    return 2 * math.prod(left.shape) * right.shape[-1]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside this context attention on `meta` keeps what the fused kernels keep.

    On `meta` torch falls back to the textbook formula, which holds the scores of all positions.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        if not query.is_meta:
            return before(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        mask = attn_mask
        if mask is not None and mask.dtype == torch.bool:
            # As the kernels do, once per layer: a float of every entry, at every batch row.
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        return _FLASH(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0]

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before
