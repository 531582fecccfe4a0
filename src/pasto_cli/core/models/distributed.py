"""Several processes under `accelerate launch`: each runs its share of the pairs and trees, and all
end with the same numbers.

Data parallel: every process holds the model and the adapter. What a loss needs of the whole batch
(the spread of the base differences, the span of the personas) is made from what all processes
gathered, so that the gradients of the shares add up to the gradient of one process. Without a
launcher there is one process and nothing here does anything."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from pasto_cli.core.models.memory import Pieces

T = TypeVar("T")


def init() -> None:
    """Meet the other processes that a launcher started (WORLD_SIZE says how many); once a
    process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        on_cpu = (
            os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
            or not torch.cuda.is_available()
        )
        PartialState(cpu=on_cpu)


def destroy() -> None:
    """Say goodbye, so that no process waits for one that is gone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 prints and writes."""
    return dist.get_rank() if size() > 1 else 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's part: every `size`th, from `rank` on."""
    return items[rank() :: size()] if size() > 1 else items


def all_gather_object(mine: Any) -> list[Any]:
    """What every process holds, in the order of ranks; tensors are detached and come back on the
    cpu."""
    if size() == 1:
        return [mine]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, to_device(mine, "cpu"))
    return found


def all_gather(mine: Sequence[T], count: int) -> list[T]:
    """The whole of which every process holds its `share` (count items)."""
    parts = all_gather_object(list(mine))
    return [parts[i % size()][i // size()] for i in range(count)]


def map_groups(
    groups: Sequence[list[int]],
    compute: Callable[[list[int]], Mapping[int, T]],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[int, T]:
    """The result of every index: groups are shared over processes, halved where memory runs out.

    Args:
        groups: Indices of items that are computed together.
        compute: Results of one group by index; may be called again with parts of a group that did
            not fit into memory.
        progress: Told how many items each step has finished.

    Returns:
        Results of all processes, merged by index; tensors from other processes are on the cpu.
    """
    own: dict[int, T] = {}

    def run(group: list[int]) -> None:
        own.update(compute(group))
        progress(len(group))

    pieces = Pieces(run)
    for group in shard(groups):
        pieces(group)
    if size() == 1:
        return own
    merged = {i: result for part in all_gather_object(own) for i, result in part.items()}
    progress(len(merged) - len(own))
    return merged


def to_device(item: Any, device: torch.device | str) -> Any:
    """Detach the tensors inside tuples, lists and dicts and move them to a device."""
    if isinstance(item, Tensor):
        return item.detach().to(device)
    if isinstance(item, dict):
        return {key: to_device(value, device) for key, value in item.items()}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(to_device(x, device) for x in item))
    if isinstance(item, list | tuple):
        return type(item)(to_device(x, device) for x in item)
    return item


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add the gradients of all processes, in place."""
    if size() == 1:
        return
    some = list(parameters)
    flat = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in some]
    )
    dist.all_reduce(flat)
    for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
        p.grad = part.view_as(p)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Take over the first process's tensors, in place: other processors may round otherwise."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


@contextmanager
def kept_by_the_first(folder: Path) -> Iterator[Path]:
    """A folder to write to: the first process's is kept, the others write what is thrown away."""
    if rank() == 0:
        yield folder
        return
    with TemporaryDirectory() as thrown_away:
        yield Path(thrown_away)


@contextmanager
def copied_by_the_others(folder: Path) -> Iterator[Path]:
    """A folder to go on with: the first process takes it itself, the others a copy that is thrown
    away."""
    if rank() == 0 or not folder.is_dir():
        all_gather_object(None)  # until the others have their copies
        yield folder
        return
    with TemporaryDirectory() as thrown_away:
        copy = Path(shutil.copytree(folder, Path(thrown_away) / folder.resolve().name))
        all_gather_object(None)
        yield copy
