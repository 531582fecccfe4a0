"""The cache of decompositions: same bits, never wrong factors, never in the way."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from pasto_cli.base.cache import cache_dir
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.residual_writers import Writer, find_writers
from pasto_cli.core.steering.factors import decompose
from pasto_cli.core.training import svd_cache
from pasto_cli.core.training.svd_cache import decompose_writer


@pytest.fixture()
def solved(monkeypatch):
    """Shapes that were decomposed rather than read."""
    shapes = []

    def counted(weight):
        shapes.append(tuple(weight.shape))
        return decompose(weight)

    monkeypatch.setattr(svd_cache, "decompose", counted)
    return shapes


def a_writer(shape=(6, 9), seed=0):
    module = torch.nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return Writer("layer", 0, module)


def files():
    return sorted((cache_dir() / "svd").glob("*"))


def same(one, other):
    return all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama-4bit", "llama-8bit"])
def test_a_second_time_reads_the_same_bits(tiny, solved, name):
    writers = find_writers(tiny(name).model)
    first = [decompose_writer(w) for w in writers]
    assert len(solved) == len(writers)
    assert all(same(decompose_writer(w), f) for w, f in zip(writers, first, strict=True))
    assert len(solved) == len(writers)
    assert same(first[0], decompose(dense_weight(writers[0].module)))


def test_another_weight_is_another_entry(solved):
    decompose_writer(a_writer())
    decompose_writer(a_writer(seed=1))
    changed = a_writer()
    with torch.no_grad():
        changed.module.weight[0, 0] += 1e-6
    decompose_writer(changed)
    assert len(solved) == len(files()) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "other factors", "other shapes", "other names"])
def test_damaged_entries_are_made_again(solved, damage):
    writer = a_writer()
    good = decompose_writer(writer)
    (file,) = files()
    content = file.read_bytes()
    tensors = load_file(file)
    if damage in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    else:
        other = {
            "other factors": lambda: {**tensors, "s": tensors["s"].flip(0).contiguous()},
            "other shapes": lambda: {k: v[:3].contiguous() for k, v in tensors.items()},
            "other names": lambda: {"x": tensors["s"]},
        }[damage]()
        save_file(other, file)
    assert same(decompose_writer(writer), good)
    assert len(solved) == 2
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_costs_nothing(solved, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "file"))
    writer = a_writer()
    assert same(decompose_writer(writer), decompose_writer(writer))
    assert len(solved) == 2


def test_the_oldest_goes_when_there_is_no_room(solved, monkeypatch):
    for seed in range(3):
        decompose_writer(a_writer(seed=seed))
        for age, file in enumerate(reversed(sorted(files(), key=os.path.getmtime))):
            os.utime(file, (1000 - age, 1000 - age))
    size = files()[0].stat().st_size
    assert len(files()) == 3
    decompose_writer(a_writer(seed=0))  # used: now the youngest
    monkeypatch.setattr(svd_cache, "ROOM", 3 * size)
    decompose_writer(a_writer(seed=3))
    assert len(files()) == 3
    before = len(solved)
    decompose_writer(a_writer(seed=0))
    assert len(solved) == before
