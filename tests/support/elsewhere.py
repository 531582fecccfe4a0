"""A device that is not the CPU, without a GPU: true numbers, and an error where devices mix.

Tensors that stand `elsewhere` keep their numbers in a CPU tensor that only this module sees. Every
operation that is asked for is done on those, so that results are those of the CPU; but one that
takes a tensor of the CPU beside one of elsewhere is refused, as a GPU would refuse it. Tensors of
the CPU without dimensions may take part, as they may there.

PyTorch lends the key `PrivateUse1` to devices of one's own (`torch.utils.backend_registration`). It
has to know them before its first backward pass: a process of its own runs the command line there,

    python -m tests.support.elsewhere HOW ARGS...

with the model moved away whole (HOW is `all`), or in its later layers (`half`).
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "elsewhere"
MOVES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::set_")
"""Operations that may see both devices."""
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_")
"""Of which the indexes may be on the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor that stands elsewhere."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(NAME, 0),
        )
        made.numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:
        return f"elsewhere({self.numbers!r})"

    __torch_dispatch__ = classmethod(
        lambda cls, op, types, args=(), kwargs=None: run(op, args, kwargs)
    )


class Mixed(AssertionError):
    """An operation on tensors of two devices."""


def run(op: Any, args: Any, kwargs: Any) -> Any:
    """One operation of the dispatcher."""
    kwargs = dict(kwargs or {})
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() > 0]
    name = op._schema.name
    device = kwargs.get("device")
    asked = device is not None and torch.device(device).type == NAME
    if name in INDEXED and isinstance(args[0], Elsewhere):
        here = []
    if name not in MOVES and here and (away or asked):
        raise Mixed(
            f"{name}: {[tuple(x.shape) for x in away]} elsewhere, "
            f"{[tuple(x.shape) for x in here]} on the cpu"
        )
    if asked:
        kwargs["device"] = torch.device("cpu")
    plain_args, plain_kwargs = pytree.tree_map_only(Elsewhere, lambda x: x.numbers, (args, kwargs))
    found = op(*plain_args, **plain_kwargs)
    stays = asked or (bool(away) and device is None)
    if name in ("aten::copy_", "aten::set_"):
        return args[0]
    if not stays:
        return found
    same = {id(x.numbers): x for x in away}

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, Elsewhere):
            return x
        return same.get(id(x)) if id(x) in same else Elsewhere(x)

    return pytree.tree_map_only(torch.Tensor, wrapped, found)


class _Mode(TorchDispatchMode):
    """Also what has no tensor among its arguments: factories."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs)


class _Functions(TorchFunctionMode):
    """What copies from or to Python below the dispatcher."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if function is torch.tensor and device is not None and torch.device(device).type == NAME:
            del kwargs["device"]
            return function(*args, **kwargs).to(device)
        if function is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].numbers.tolist()  # refused for subclasses; a GPU's tensor has it
        if function is torch.Tensor.__getitem__ and isinstance(args[0], Elsewhere):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            lists = (torch.tensor(i) if isinstance(i, list) else i for i in index)
            return function(args[0], tuple(lists))
        return function(*args, **kwargs)


class _Backend(_DummyBackendModule):
    """What torch asks of a kind of device; its generator is the CPU's."""

    def get_rng_state(self, _device: object = None) -> torch.Tensor:
        return torch.random.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: object = None) -> None:
        torch.random.set_rng_state(state)


_known = False


def register() -> torch.device:
    """Make the device known; once a process."""
    global _known
    if not _known:
        _setup_privateuseone_for_python_backend(NAME, _Backend())
        _known = True
    return torch.device(NAME, 0)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Inside, the device exists; the process ends where the block does, by its exit status.

    A backward pass there has a thread, which asks for the interpreter's lock when it ends. Where it
    does so while the interpreter is being taken down, the process is aborted instead: one in four.
    """
    status = 0
    try:
        device = register()
        with _Mode(), _Functions():
            yield device
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def split(model: Any, first: str, second: str, at: int = 3) -> dict[str, str]:
    """A map of devices: embeddings, the head that is tied to them and the first layers, then the
    rest."""
    layers = range(len(model.model.layers))
    return {
        "model.embed_tokens": first,
        "lm_head": first,
        "model.rotary_emb": first,
        **{f"model.layers.{i}": first if i < at else second for i in layers},
        "model.norm": second,
    }


def main() -> None:
    """`pasto ARGS` with what it loads moved away."""
    how, *arguments = sys.argv[1:]
    with elsewhere() as device:
        from pasto_cli.cli import app
        from pasto_cli.core.models.loading import load_model
        from pasto_cli.core.models.spread import spread_out
        from pasto_cli.workflows import dials, evaluate, prepare
        from tests.support.runs import PROMPTS

        def load(*spec: Any) -> Any:
            lm = load_model(*spec)
            if how == "all":
                lm.model.to(device)
                assert lm.device == device
            else:
                spread_out(lm.model, split(lm.model, "cpu", str(device)), main_device="cpu")
                assert lm.device.type == "cpu"
            assert lm.model.model.layers[-1].mlp.down_proj.weight.device == device
            return lm

        torch.set_num_threads(1)
        dials.load_model = load
        evaluate.PROBE_PROMPTS, prepare.ELICITATION_ITEMS = PROMPTS, 2  # as the other tests have it
        sys.argv = ["pasto", *arguments]
        app.main()


if __name__ == "__main__":
    main()
