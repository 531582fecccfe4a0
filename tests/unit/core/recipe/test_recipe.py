"""Recipes: every mistake at once, with its line; overrides; all shipped recipes load."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.load import RecipeError, dump_recipe, load_recipe
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import ROTATION_KEYS, Recipe
from pasto_cli.core.recipe.subspace_expression import Term, parse_subspace
from tests.support.examples import examples

ROOT = Path(__file__).parents[4]
GOOD = "name: x\nmodel: {source: random:llama}\npairs: {words: [honest, dishonest]}\n"


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipe_loads_and_round_trips(path, tmp_path):
    recipe = load_recipe(path)
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe


def test_all_mistakes_are_reported_together_with_their_lines(tmp_path):
    path = write(
        tmp_path,
        "name: bad/name\nmodel:\n  source: x\n  quantisation: 4bit\n  dtype: float23\npairs:\n  "
        "words: [a, b]\n"
        "  suffixes: {dataset: d, colum: c}\nadapter:\n  rank: -3\ntraining:\n  epochs: ten\n",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.epohcs=3", "oops"])
    text = "\n".join(caught.value.problems)
    for expected in (
        f"{path}:1: name: 'bad/name'",
        f"{path}:4: model.quantisation: unknown key; did you mean 'quantization'?",
        f"{path}:5: model.dtype: 'float23' is not allowed; did you mean 'float32'?",
        f"{path}:8: pairs.suffixes.colum: unknown key; did you mean 'column'?",
        f"{path}:10: adapter.rank:",
        f"{path}:12: training.epochs:",
        "--set training.epohcs=3: training.epohcs: unknown key; did you mean 'epochs'?",
        "--set oops: write --set section.key=value",
    ):
        assert expected in text
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nname: y\n", "given twice"),
        ("- a\n- b\n", "mapping of sections"),
        ("name: [x\n", "not valid YAML"),
        (GOOD + "subspace: {expression: taskdif & write}\n", "did you mean 'taskdiff'?"),
        (GOOD + "subspace: {expression: ~write}\n", "cannot be a complement"),
        (GOOD + "adapter: {last_layer: 0.9}\n", "behind subspace.depth"),
        (GOOD + "adapter: {max_angle: 180}\n", "less than 180"),
        (
            GOOD + "adapter: {kind: lora, bound: spectral}\n",
            "kind: lora rotates nothing and has no",
        ),
        (GOOD + "adapter: {kind: lora, max_angle: 45}\n", "has no max_angle; take that out"),
        (GOOD + "adapter: {kind: lora, init_delta_mean: 0}\n", "no init_delta_mean; take"),
        (GOOD + "adapter: {kind: lora, init_theta_std: 1}\n", "or write kind: cayley"),
        (GOOD + "adapter: {kind: lra}\n", "did you mean 'lora'?"),
        (GOOD + "losses: orignal\n", "'original'"),
        ("name: x\nmodel: {source: a}\npairs: {}\n", "exactly one of file, words, personas"),
        (
            "name: x\nmodel: {source: a}\npairs: {words: [a, b], templates: [no placeholder]}\n",
            "{persona} exactly once",
        ),
        (GOOD + "training: {lr: .nan}\n", "finite number"),
        (GOOD + "model2: {}\n", "did you mean 'model'?"),
    ],
)
def test_single_mistakes(tmp_path, text, expected):
    with pytest.raises(PastoError) as caught:
        load_recipe(write(tmp_path, text))
    assert expected in str(caught.value)


def test_missing_file_suggests_a_neighbour(tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(PastoError, match="Did you mean .*r.yaml"):
        load_recipe(tmp_path / "rr.yaml")


def test_overrides_reach_any_key(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path,
        ["training.epochs=3", "adapter.rank=8", "losses.neutral=null", "pairs.words=[kind, cruel]"],
    )
    assert (recipe.training.epochs, recipe.adapter.rank, recipe.losses.neutral) == (3, 8, None)
    assert recipe.pairs.words == ("kind", "cruel")
    with pytest.raises(PastoError, match="not a section"):
        load_recipe(path, ["name.x=1"])


def test_the_linear_kind_is_stored_without_what_it_has_not(tmp_path):
    path = write(tmp_path, GOOD + "adapter: {max_angle: 30}\n")
    with pytest.raises(RecipeError, match="has no max_angle"):
        load_recipe(path, ["adapter.kind=lora"])
    recipe = load_recipe(write(tmp_path, GOOD), ["adapter.kind=lora", "adapter.rank=8"])
    text = dump_recipe(recipe)
    assert "kind: lora" in text and "rank: 8" in text
    assert not [key for key in ROTATION_KEYS if key in text]
    assert load_recipe(write(tmp_path, text)) == recipe
    assert not recipe.adapter.rotates
    usual = dump_recipe(load_recipe(write(tmp_path, GOOD)))
    assert "kind: cayley" in usual and all(key in usual for key in ROTATION_KEYS)


def test_original_losses_are_the_published_set():
    losses = LossesSpec.model_validate("original")
    assert losses.neutral is None
    assert (losses.coherence.kappa, losses.coherence.tokens, losses.monotonicity.variant) == (
        0.9,
        "all",
        "batch",
    )


def test_schema_describes_every_key():
    schema = Recipe.model_json_schema()
    undescribed = [
        f"{name}.{key}"
        for name, model in schema["$defs"].items()
        for key, field in model["properties"].items()
        if "description" not in field
    ]
    assert undescribed == []
    json.dumps(schema)


def test_expression_grammar():
    assert parse_subspace("taskdiff & write & ~ logits_read") == (
        Term("taskdiff", False),
        Term("write", False),
        Term("logits_read", True),
    )


@examples(100)
@given(text=st.text(max_size=300))
def test_no_text_breaks_the_loader(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(
        text, encoding="utf-8", errors="surrogateescape" if text.isascii() else "ignore"
    )
    try:
        load_recipe(path)
    except PastoError:
        pass


KEYS = st.sampled_from(
    [
        "name",
        "model",
        "pairs",
        "adapter",
        "losses",
        "source",
        "rank",
        "words",
        "neutral",
        "training",
        "lr",
        "x",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@examples(100)
@given(data=st.dictionaries(KEYS, VALUES, max_size=6))
def test_no_structure_breaks_the_loader(data, tmp_path_factory):
    import yaml

    path = tmp_path_factory.getbasetemp() / "fuzz2.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        load_recipe(path, ["training.epochs=2"])
    except PastoError:
        pass
