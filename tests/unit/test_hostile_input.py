"""Two thousand mutated inputs: recipes, pairs, benchmarks and adapters are read or refused, never a
traceback, never a hang."""

import copy
import json
import random
import shutil
import struct
import time
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError
from pasto_cli.base.provenance import now
from pasto_cli.core.artifact import antipasto_format, store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.pairs.pairs import make_pairs, read_pairs, write_pairs
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import PairsSpec, Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.training import ImportRecord
from pasto_cli.workflows import dials, progress, publish
from tests.support.terminal import OWN, TINY

NASTY = (
    b"\x00",
    b"\xff\xfe",
    b"[" * 3000,
    b"{" * 3000,
    b'{"a":' * 2000,
    b"- " * 2000,
    b"&a [*a]",
    b"*a",
    b"<<: *a",
    b"!!python/name:os",
    b"!!python/object/apply:os.system ['true']",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"-1",
    b"0",
    b"null",
    b"~",
    b"true",
    b"\t",
    b": ",
    b"# ",
    b"---\n",
    b"|\n",
    b"2001-02-31",
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    -(10**18),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "../..",
    "\x00",
    [],
    [[]],
    {},
    {"a": {}},
    [None] * 50,
    ["1"],
    {"1": 1},
    "-1",
    "none",
    "4bit",
    "random:llama",
    "./nowhere",
    "cuda:99",
    "a/b",
    ["a", "b", "c"],
    [0, 1],
    [-5],
    [10**9],
)
SECONDS = 5.0

mutated = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


def mangle_bytes(raw: bytes, rng: random.Random) -> bytes:
    """One to four cuts, copies, flips and insertions."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randint(0, len(raw)), rng.randint(0, len(raw))))
        raw = rng.choice(
            (
                lambda r, i=i, j=j: r[:i] + r[j:],
                lambda r, i=i, j=j: r[:j] + r[i:],
                lambda r, i=i: r[:i] + rng.choice(NASTY) + r[i:],
                lambda r, i=i: r[:i] + bytes([rng.randrange(256)]) + r[i + 1 :],
            )
        )(raw)
    return raw


def mangle_json(data, rng: random.Random):
    """One to three places of a JSON value replaced, removed or added to."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        here = data
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(here[key], dict | list) and rng.random() < 0.75:
                here = here[key]
                continue
            what = rng.random()
            if what < 0.7:
                here[key] = copy.deepcopy(rng.choice(VALUES))
            elif what < 0.85:
                del here[key]
            elif isinstance(here, dict):
                here[rng.choice(("", "x", "../..", "__class__", str(key) + " "))] = copy.deepcopy(
                    rng.choice(VALUES)
                )
            break
    return data


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


@mutated
@given(seed=st.integers(0, 2**32), structured=st.booleans())
def test_recipes(tmp_path_factory, seed, structured):
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "hostile.yaml"
    data = load_recipe(TINY).model_dump(mode="json")
    if structured:
        path.write_text(json.dumps(mangle_json(data, rng)))  # JSON is YAML
    else:
        path.write_bytes(mangle_bytes(TINY.read_bytes(), rng))
    survives(lambda: load_recipe(path, ["training.epochs=1"]))


@mutated
@given(seed=st.integers(0, 2**32), structured=st.booleans())
def test_pairs(tmp_path_factory, seed, structured):
    rng, path = random.Random(seed), tmp_path_factory.getbasetemp() / "hostile.jsonl"
    if not path.with_suffix(".good").exists():
        write_pairs(
            make_pairs(PairsSpec(words=("kind", "cruel"), count=16)).pairs,
            path.with_suffix(".good"),
        )
    good = path.with_suffix(".good").read_bytes()
    if structured:
        lines = [json.loads(line) for line in good.splitlines()]
        lines[rng.randrange(len(lines))] = mangle_json(lines[0], rng)
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        path.write_bytes(mangle_bytes(good, rng))
    survives(lambda: read_pairs(path))


@mutated
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["yaml", "json", "jsonl"]))
def test_benchmarks(tmp_path_factory, seed, kind):
    import yaml

    rng, folder = random.Random(seed), tmp_path_factory.getbasetemp()
    path = folder / ("hostile.jsonl" if kind == "jsonl" else "hostile.bench.yaml")
    line = {"id": "q1", "value": "candour", "question": "Is it?", "matching": "yes"}
    if kind == "yaml":
        path.write_bytes(mangle_bytes(OWN.encode(), rng))
    elif kind == "json":
        path.write_text(json.dumps(mangle_json(yaml.safe_load(OWN), rng)))
    elif rng.random() < 0.5:
        path.write_text("\n".join(json.dumps(mangle_json(line, rng)) for _ in range(3)))
    else:
        path.write_bytes(mangle_bytes(json.dumps(line).encode() * 2, rng))
    survives(lambda: load_benchmark(str(path)))


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


@mutated
@given(
    seed=st.integers(0, 2**32), what=st.sampled_from(["meta", "meta bytes", "tensors", "header"])
)
def test_adapters(whole, tmp_path_factory, seed, what):
    lm, good = whole
    rng, folder = random.Random(seed), tmp_path_factory.getbasetemp() / "hostile-adapter"
    shutil.copytree(good, folder, dirs_exist_ok=True)
    meta, tensors = folder / store.META, folder / store.TENSORS
    if what == "meta":
        meta.write_text(json.dumps(mangle_json(json.loads(meta.read_text()), rng)))
    elif what == "meta bytes":
        meta.write_bytes(mangle_bytes(meta.read_bytes(), rng))
    elif what == "tensors":
        tensors.write_bytes(mangle_bytes(tensors.read_bytes(), rng))
    else:
        raw = tensors.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header = mangle_json(json.loads(raw[8 : 8 + size]), rng)
        text = json.dumps(header).encode()
        length = rng.choice((len(text), size, 2**60, 2**31, 0))
        tensors.write_bytes(struct.pack("<Q", length) + text + raw[8 + size :])

    def read():
        found = store.read_meta(folder)
        dials.recipe_of(found, folder)
        adapter = store.load_adapter(folder, found, lm)
        with torch.no_grad(), adapter.at(lm.model, 1.0):
            assert torch.isfinite(lm.model(input_ids=torch.arange(40, 50)[None]).logits).all()

    survives(read)


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
    tracemalloc.start()
    try:
        assert not survives(lambda: load_recipe(path))
        if name != "size":  # a benchmark may be long
            assert not survives(lambda: load_benchmark(str(path)))
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
