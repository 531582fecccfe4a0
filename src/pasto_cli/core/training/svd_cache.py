"""Singular value decompositions of writers on disk: a second run on a base does none.

One safetensors file per weight in $PASTO_CACHE/svd. Its name is a hash of what decides the factors
bit for bit: bytes and shape of the weight, torch version, kind of device. The factors are read back
bit for bit, so that a run with a full cache gives the same adapter as one with an empty cache. The
folder may be deleted at any time.

    W = U diag(S) V^T:  W (d_out, d_in), U (d_out, k), S (k,), V (d_in, k), k = min(d_out, d_in)
"""

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pasto_cli.base.cache import cached_file, keep
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.residual_writers import Writer
from pasto_cli.core.steering.factors import Factors, decompose

ROOM = 8 * 2**30
"""Bytes that the folder may hold; what was used least recently goes first."""


def decompose_writer(writer: Writer) -> Factors:
    """Full decomposition of a writer's (dequantised) weight, from the cache if it is there.

    It is as large as two or three such weights: keep the directions that are needed only.
    """
    weight = dense_weight(writer.module)
    path = cached_file("svd", f"{_key(weight)}.safetensors")
    found = None if path is None else _read(path, weight)
    if found is None:
        found = decompose(weight)
        if path is not None:
            _write(path, found)
    return found


def _key(weight: Tensor) -> str:
    """Name of a weight's file."""
    facts = f"{tuple(weight.shape)} {weight.dtype} {torch.__version__} {weight.device.type}"
    content = weight.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return hashlib.sha256(facts.encode() + hashlib.sha256(content).digest()).hexdigest()[:40]


def _read(path: Path, weight: Tensor) -> Factors | None:
    """The factors of a file, if they are whole and are those of the weight."""
    try:
        tensors = load_file(path, device=str(weight.device))
        found = Factors(tensors["u"], tensors["s"], tensors["v"])
        os.utime(path)  # `_make_room` goes by the time of the last use
    except (OSError, SafetensorError, KeyError):
        return None
    (d_out, d_in), k = weight.shape, min(weight.shape)
    if [tuple(x.shape) for x in found] != [(d_out, k), (k,), (d_in, k)]:
        return None
    # A damaged file may still parse: one product with a random vector tells whether these are the
    # factors of this weight, far cheaper than a decomposition.
    probe = torch.randn(d_in, generator=torch.Generator().manual_seed(0)).to(weight)  # (d_in,)
    expected = weight @ probe  # (d_out,)
    off = (found.u @ (found.s * (found.v.T @ probe)) - expected).norm()
    return found if off <= 1e-3 * expected.norm() else None


def _write(path: Path, factors: Factors) -> None:
    """Best effort: a full or read-only disk costs the next run some time and this one nothing."""
    tensors = {"u": factors.u, "s": factors.s, "v": factors.v}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with contextlib.suppress(OSError):
        _make_room(path.parent, ROOM - size)
    keep(path, lambda scratch: save_file(on_cpu, scratch))


def _make_room(folder: Path, room: int) -> None:
    """Delete what was used least recently until the rest fits."""
    files = sorted(
        ((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*.safetensors")),
        reverse=True,
    )
    for _, size, file in files:
        room -= size
        if room < 0:
            file.unlink(missing_ok=True)
