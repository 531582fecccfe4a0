"""Singular value decompositions of writers, kept on disk by what the weight is: a second run on a
base does none.

One safetensors file for each weight in $PASTO_CACHE/svd, named by a hash of its bytes, shape, torch
version and device. The factors are read back bit for bit, so that a run with a full cache gives the
same adapter as one with an empty cache. The folder may be deleted at any time."""

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pasto_cli.base.cache import cache_dir
from pasto_cli.core.models.residual_writers import Writer, dense_weight
from pasto_cli.core.steering.adapter import Factors, decompose

ROOM = 8 * 2**30
"""Bytes that the folder may hold; what was used least recently goes first."""


def decompose_writer(writer: Writer) -> Factors:
    """Full decomposition of a writer's (dequantised) weight, from the cache if it is there.

    Large: keep the directions that are needed and let the rest go.
    """
    weight = dense_weight(writer.module)
    path = cache_dir() / "svd" / f"{_key(weight)}.safetensors"
    found = _read(path, weight)
    if found is None:
        found = decompose(weight)
        _write(path, found)
    return found


def _key(weight: Tensor) -> str:
    facts = f"{tuple(weight.shape)} {weight.dtype} {torch.__version__} {weight.device.type}"
    content = weight.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return hashlib.sha256(facts.encode() + hashlib.sha256(content).digest()).hexdigest()[:40]


def _read(path: Path, weight: Tensor) -> Factors | None:
    """The factors of a file, if they are whole and are those of the weight (checked on one random
    vector)."""
    try:
        tensors = load_file(path, device=str(weight.device))
        found = Factors(tensors["u"], tensors["s"], tensors["v"])
        os.utime(path)
    except (OSError, SafetensorError, KeyError):
        return None
    rank = min(weight.shape)
    if (found.u.shape, found.s.shape, found.v.shape) != (
        (weight.shape[0], rank),
        (rank,),
        (weight.shape[1], rank),
    ):
        return None
    probe = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected = weight @ probe
    off = (found.u @ (found.s * (found.v.T @ probe)) - expected).norm()
    return found if off <= 1e-3 * expected.norm() else None


def _write(path: Path, factors: Factors) -> None:
    """Best effort: a full or read-only disk costs the next run some time and this one nothing."""
    tensors = {"u": factors.u, "s": factors.s, "v": factors.v}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, ROOM - size)
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


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
