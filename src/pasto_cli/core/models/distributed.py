"""Several processes under `accelerate launch`: collectives of torch.distributed, and none for one.

Data parallel: every process holds the model and the adapter, runs its shard of the pairs and trees,
and ends with the same numbers. What a loss needs of the whole batch (the spread of the base
differences, the span of the personas) is made from what all processes gathered, so that the
gradients of the shards add up to the gradient of one process. Without a launcher the world has one
process, and nothing here does anything.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from pasto_cli.base.errors import PastoError
from pasto_cli.base.launch import world_size
from pasto_cli.core.models.memory import Pieces

T = TypeVar("T")


def init() -> None:
    """Initialise the process group if a launcher started several processes (WORLD_SIZE).

    Raises:
        PastoError: If the variables of the launcher are broken, or the processes do not meet.
    """
    if world_size() == 1:
        return
    from accelerate import PartialState

    on_cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        or not torch.cuda.is_available()
    )
    try:
        PartialState(cpu=on_cpu)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PastoError(
            f"the processes cannot meet at {where} ({str(error).splitlines()[0][:200]})",
            "MASTER_ADDR and MASTER_PORT say where; torchrun sets them. For one process: unset "
            "WORLD_SIZE",
        ) from None


def destroy() -> None:
    """Destroy the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End one of several processes, with everything it has written.

    Without the interpreter's own teardown: a thread of a communication library that is still alive
    then aborts the process (SIGABRT) now and then, and the launcher takes a finished run for a
    failed one.

    Args:
        code: Exit code.
    """
    destroy()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def size() -> int:
    """World size: the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; rank 0 prints and writes."""
    return dist.get_rank() if size() > 1 else 0


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's shard: every `size`th item, from `rank` on."""
    return items[rank() :: size()] if size() > 1 else items


def all_gather_object(mine: Any) -> list[Any]:
    """Gather an object of every process, in the order of ranks.

    Tensors are detached and come back on the cpu: a device of another process may not exist here.
    """
    if size() == 1:
        return [mine]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, to_device(mine, "cpu"))
    return found


def all_gather(mine: Sequence[T], count: int) -> list[T]:
    """Gather the `count` items of which every process holds its `shard`."""
    parts = all_gather_object(list(mine))
    # Undo `shard`: item i is number i // size of rank i % size.
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

    # Neighbours in `groups` share beginnings and sizes, so that every `size`th is a fair shard.
    pieces = Pieces(run)
    for group in shard(groups):
        pieces(group)
    merged = merge(own)
    if len(merged) > len(own):
        progress(len(merged) - len(own))
    return merged


def merge(own: dict[int, T]) -> dict[int, T]:
    """The results of all processes by index: the same in each, tensors on the cpu if several."""
    if size() == 1:
        return own
    return {i: result for part in all_gather_object(own) for i, result in part.items()}


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
    """All-reduce the gradients (sum), in place."""
    if size() == 1:
        return
    some = list(parameters)
    # One flat tensor, so that there is one collective; a process without a pair adds zeros.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
        p.grad = part.view_as(p)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Broadcast the tensors of rank 0, in place: other processors may round otherwise."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


@contextmanager
def kept_by_the_first(folder: Path) -> Iterator[Path]:
    """A folder to write to: rank 0's is kept, the others write what is thrown away."""
    if rank() == 0:
        yield folder
        return
    with TemporaryDirectory() as thrown_away:
        yield Path(thrown_away)


@contextmanager
def copied_by_the_others(folder: Path) -> Iterator[Path]:
    """A folder to go on with: rank 0 takes it itself, the others a copy that is thrown away."""
    if rank() == 0 or not folder.is_dir():
        all_gather_object(None)  # a barrier: until the others have their copies
        yield folder
        return
    with TemporaryDirectory() as thrown_away:
        copy = Path(shutil.copytree(folder, Path(thrown_away) / folder.resolve().name))
        all_gather_object(None)
        yield copy
