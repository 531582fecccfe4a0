"""The artifact: bit-equal after a round trip, strict about everything else, whole or not at all."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pasto_cli.base.errors import PastoError
from pasto_cli.base.provenance import now, versions
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.verify import describe_base, reference_logits
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.recipe.schema import ModelSpec
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.training import ImportRecord
from tests.support.killing import killed_between_renames
from tests.support.variants import KINDS


@pytest.fixture()
def saved(tiny, make_adapter, tmp_path):
    return save(tiny(), make_adapter(tiny()), tmp_path / "adapter")


@pytest.fixture(params=KINDS)
def either(tiny, make_adapter, tmp_path, request):
    """As `saved`, of every kind."""
    return save(tiny(), make_adapter(tiny(), kind=request.param), tmp_path / "adapter")


def save(lm, adapter, folder):
    angle = adapter.angle()
    bounds = {} if angle is None else {"bound": "spectral", "max_angle": 45.0}
    meta = Meta(
        format_version=1,
        created=now(),
        base=describe_base(lm, adapter),
        **bounds,
        kind="cayley" if bounds else "lora",
        largest_angle=angle,
        recipe={},
        pairs_sha256="0",
        num_pairs={},
        personas=["a", "b"],
        training=ImportRecord(imported="nowhere"),
        certificate=None,
        reference=reference_logits(lm, adapter),
        versions=versions(),
    )
    store.save(folder, adapter, meta, "card")
    return folder, lm, adapter


def load(folder, lm, verify=True):
    return store.load_adapter(folder, store.read_meta(folder), lm, verify)


def test_round_trip_is_bit_equal(either):
    folder, lm, adapter = either
    again = load(folder, lm)
    ids = torch.arange(40, 60)[None]
    for a in (-1.0, 0.5):
        with torch.no_grad(), adapter.at(lm.model, a):
            one = lm.model(input_ids=ids).logits
        with torch.no_grad(), again.at(lm.model, a):
            assert torch.equal(one, lm.model(input_ids=ids).logits)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["adapter"]  # no scratch left
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "pasto.json",
    ]


def change_tensors(folder, change):
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors, sorted(tensors))
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t, k: t.pop(k[0]), "1 tensors are missing"),
        (lambda t, k: t.update(extra=torch.zeros(1)), "unexpected tensors, such as extra"),
        (lambda t, k: t.update({k[0]: t[k[0]][:-1].clone()}), "do not fit a module"),
        (lambda t, k: t.update({n: t[n].double() for n in k}), "do not fit a module"),
        (
            lambda t, k: t.update({n: t[n] * 1.5 for n in k if n.endswith(("theta", ".b"))}),
            "not the file that pasto.json was written with",
        ),
    ],
)
def test_tampered_tensors_are_refused(either, change, expected):
    folder, lm, _ = either
    change_tensors(folder, change)
    with pytest.raises(PastoError, match=expected):
        load(folder, lm)


def test_without_a_hash_the_reference_logits_tell(either):
    """Adapters that were saved before there was one."""
    folder, lm, _ = either
    trained = ("theta", ".b")
    change_tensors(folder, lambda t, k: t.update({n: t[n] * 1.5 for n in k if n.endswith(trained)}))
    meta = json.loads((folder / "pasto.json").read_text())
    (folder / "pasto.json").write_text(json.dumps(meta | {"tensors_sha256": None}))
    with pytest.raises(PastoError, match="reference logits at coefficient"):
        load(folder, lm)


def test_truncated_file(saved):
    folder, lm, _ = saved
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PastoError, match="damaged or missing"):
        load(folder, lm)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(format_version=2), "format 2"),
        (lambda m: m.pop("base"), "base"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(kind="conv"), "kind"),
        (lambda m: m.update(kind="lora"), "belong to the kind cayley"),
        (lambda m: m.pop("bound"), "belong to the kind cayley"),
        (lambda m: m.update(max_angle=None), "belong to the kind cayley"),
    ],
)
def test_bad_metadata(saved, change, expected):
    folder, lm, _ = saved
    meta = json.loads((folder / "pasto.json").read_text())
    change(meta)
    (folder / "pasto.json").write_text(json.dumps(meta))
    with pytest.raises(PastoError, match=expected):
        load(folder, lm)
    (folder / "pasto.json").write_text("{")
    with pytest.raises(PastoError, match="cannot be read"):
        store.read_meta(folder)
    with pytest.raises(PastoError, match="no adapter here"):
        store.read_meta(folder.parent)


def test_tensors_of_another_kind_are_refused(saved):
    folder, lm, _ = saved
    path = folder / "pasto.json"
    meta = json.loads(path.read_text()) | {"kind": "lora"}
    meta |= {"bound": None, "max_angle": None, "largest_angle": None}
    path.write_text(json.dumps(meta))
    with pytest.raises(PastoError, match="tensors are missing, such as .*[.]a"):
        load(folder, lm)


def test_without_a_kind_it_is_a_rotation(saved):
    """As the first files of format 1."""
    folder, lm, adapter = saved
    meta = json.loads((folder / "pasto.json").read_text())
    assert meta.pop("kind") == "cayley"
    (folder / "pasto.json").write_text(json.dumps(meta))
    assert type(load(folder, lm)) is type(adapter)


def test_a_wrong_base_is_refused(either, tiny):
    folder, lm, _ = either
    from pasto_cli.core.models.random_models import build_random

    other = load_model(ModelSpec(source="random:llama", device="cpu"))
    other.model = build_random("llama", "sdpa", torch.float32, seed=1)[0]
    with pytest.raises(PastoError, match="wrong base: model.layers"):
        load(folder, other)
    with pytest.raises(PastoError, match="wrong base: random:gpt2"):
        load(folder, tiny("gpt2"))
    load(folder, other, verify=False)  # the user insists


def test_the_same_base_in_another_precision_is_accepted(either, tiny):
    folder, _, _ = either
    load(folder, tiny("llama-8bit"))
    half = load_model(ModelSpec(source="random:llama", device="cpu", dtype="bfloat16"))
    load(folder, half)


def test_another_base_in_another_precision_is_refused(either):
    """By the directions that a rotation keeps, else by the reference logits."""
    from pasto_cli.core.models.random_models import build_random

    folder, _, adapter = either
    other = load_model(ModelSpec(source="random:llama", device="cpu", dtype="bfloat16"))
    other.model = build_random("llama", "sdpa", torch.bfloat16, seed=1)[0]
    expected = "reference logits" if adapter.angle() is None else "wrong base: model.layers"
    with pytest.raises(PastoError, match=expected):
        load(folder, other)


def test_a_failed_write_leaves_the_old_artifact(saved, monkeypatch):
    folder, lm, adapter = saved
    before = (folder / "adapter.safetensors").read_bytes()
    meta = store.read_meta(folder)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(PastoError, match="No space left"):
        store.save(folder, adapter, meta, "card")
    assert (folder / "adapter.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def test_safetensors_own_error_names_the_folder_and_a_next_step(saved, monkeypatch):
    folder, _, adapter = saved
    meta = store.read_meta(folder)

    def full(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(PastoError, match="cannot write .*/adapter: .*No space left") as caught:
        store.save(folder, adapter, meta, "card")
    assert "Free some disk" in caught.value.hint
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def test_a_save_that_is_killed_leaves_the_old_artifact(saved):
    folder, lm, adapter = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    meta = store.read_meta(folder)
    killed_between_renames(lambda: store.save(folder, adapter, meta, "another card"))
    assert not folder.exists()
    load(folder, lm)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    store.save(folder, adapter, meta, "another card")
    load(folder, lm)
    assert (folder / "README.md").read_text() == "another card"
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def test_a_first_save_that_is_killed_leaves_no_half_artifact(saved, tmp_path):
    folder, lm, adapter = saved
    meta, first = store.read_meta(folder), tmp_path / "other" / "adapter"
    killed_between_renames(lambda: store.save(first, adapter, meta, "card"))
    with pytest.raises(PastoError, match="no adapter here"):
        store.read_meta(first)
    store.save(first, adapter, meta, "card")
    load(first, lm)
    assert [p.name for p in first.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-4bit", "llama-8bit", "gpt2"])
def test_round_trip_on_other_bases(tiny, make_adapter, tmp_path, name, kind):
    folder, lm, _ = save(tiny(name), make_adapter(tiny(name), kind=kind), tmp_path / "adapter")
    load(folder, lm)
