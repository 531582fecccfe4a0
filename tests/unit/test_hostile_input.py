"""Input that is made to harm: bombs, sizes that no file could have, names that lead elsewhere. What
is only damaged stands in tests/robustness."""

import json
import shutil
import struct
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError
from pasto_cli.base.provenance import now
from pasto_cli.core.artifact import antipasto_format, store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.training import ImportRecord
from pasto_cli.workflows import progress, publish
from tests.support.terminal import TINY

SECONDS = 5.0


def survives(read) -> bool:
    """Whether something was read; a `PastoError` with a next step is the only other way out, within
    seconds of work."""
    started = time.process_time()
    try:
        read()
        return True
    except PastoError as error:
        assert error.message.strip()
        assert len(error.message) < 20_000
        return False
    finally:
        assert time.process_time() - started < SECONDS


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A saved adapter on the tiny Llama."""
    from pasto_cli.core.models.linears import dense_weight
    from pasto_cli.core.models.residual_writers import find_writers, place_writers
    from pasto_cli.core.recipe.schema import AdapterSpec
    from pasto_cli.core.report.card import card
    from pasto_cli.core.steering.factors import decompose, select_directions
    from pasto_cli.core.steering.kinds import create_adapter

    lm = tiny()
    writers = place_writers(find_writers(lm.model), len(lm.layers), 0.1, 0.5, 2)
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(4))
        for w in writers
    }
    adapter = create_adapter(kept, AdapterSpec(rank=4), 0)
    recipe = Recipe.model_validate(
        {"name": "x", "model": {"source": "random:llama"}, "pairs": {"words": ["a", "b"]}}
    )
    meta = Meta(
        format_version=1,
        created=now(),
        base=describe_base(lm, adapter),
        bound="spectral",
        max_angle=45.0,
        largest_angle=1.0,
        recipe=recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={},
        personas=["a", "b"],
        training=ImportRecord(imported="x"),
        certificate=None,
        reference=reference_logits(lm, adapter),
        versions={},
    )
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    store.save(folder, adapter, meta, card(meta, []))
    return lm, folder


BOMBS = {
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    ),
    "a list that holds itself": "name: &a [*a]\n",
    "depth": "name: " + "[" * 200_000,
    "size": "name: " + "x" * 2**21,
}


def test_aliases_that_unfold_to_little_are_read(tmp_path):
    """Programs that write YAML use them for what occurs twice."""
    text = TINY.read_text().replace("words: [", "words: &w [")
    assert "&w" in text
    (tmp_path / "a.yaml").write_text(text + "\n")
    assert load_recipe(tmp_path / "a.yaml").pairs.words == load_recipe(TINY).pairs.words
    (tmp_path / "b.yaml").write_text(
        "name: x\nmodel: {source: 'random:llama'}\npairs: {words: [&a kind, *a]}\n"
    )
    assert load_recipe(tmp_path / "b.yaml").pairs.words == ("kind", "kind")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_memory_is_taken(tmp_path, name):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name])
    readers = [lambda: load_recipe(path)]
    if name != "size":  # a benchmark may be long
        readers.append(lambda: load_benchmark(str(path)))
    assert not any(map(survives, readers))
    tracemalloc.start()  # which makes reading several times as slow
    try:
        for read in readers:
            with pytest.raises(PastoError):
                read()
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_pasto_json_of_a_gigabyte_is_not_read(whole, tmp_path):
    with (tmp_path / store.META).open("wb") as file:
        file.truncate(2**30)  # sparse
    tracemalloc.start()
    with pytest.raises(PastoError, match="larger than 16 MiB"):
        store.read_meta(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_shapes_that_no_file_could_hold_are_refused_at_once(whole, tmp_path):
    lm, good = whole
    shutil.copytree(good, tmp_path / "a")
    path = tmp_path / "a" / store.TENSORS
    header = {
        key: {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}
        for key in load_file(path)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert not survives(
        lambda: store.load_adapter(tmp_path / "a", store.read_meta(tmp_path / "a"), lm)
    )


@pytest.mark.parametrize(
    "repo", ["alice/..", "../etc", "a/b/c", "alice", "alice/.", "https://x/y", "a b/c", "-/\x00"]
)
def test_ids_that_lead_out_of_a_folder_are_refused(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PastoError, match="not a repository id"):
        publish.pull_adapter(repo, None, None, progress.Silent(), force=True)


def test_originals_with_numbers_of_another_kind_are_refused(tmp_path):
    (tmp_path / antipasto_format.CONFIG).write_text(
        json.dumps({"peft_type": "APASTOADAPTER", "r": 2, "max_rotation_angle": 1.0})
    )
    name = "base_model.model.model.layers.1.mlp.down_proj"
    save_file({f"{name}.antipasto_delta_s": torch.zeros(3, 3)}, tmp_path / antipasto_format.TENSORS)
    save_file({}, tmp_path / antipasto_format.BASES)
    with pytest.raises(PastoError, match="is missing"):
        antipasto_format.read_original(tmp_path)


def test_pull_replaces_nothing_that_is_no_adapter(tmp_path, monkeypatch):
    """Refused before the Hub is asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    with pytest.raises(PastoError, match="there already"):
        publish.pull_adapter("alice/project", None, None, progress.Silent(), force=False)
    with pytest.raises(PastoError, match="is no adapter: it is not replaced"):
        publish.pull_adapter("alice/project", None, None, progress.Silent(), force=True)
