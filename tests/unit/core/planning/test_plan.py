"""Plans of tiny models against the models themselves."""

import pytest
import torch

from pasto_cli.core.models.configuration import BaseFiles
from pasto_cli.core.models.residual_writers import find_writers
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.planning import speed
from pasto_cli.core.planning.planner import Known, Planner, Target
from pasto_cli.core.planning.remedies import remedies
from pasto_cli.core.planning.sizes import CONTEXT, Kind, weight_bytes
from pasto_cli.core.planning.words import word_chat
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis

FLOAT = Kind("cuda", torch.float32, low=False)
"""A device whose bytes are the tensors' alone."""


ASKED = [Anchor(f"What is {n} plus {n}?", "own") for n in range(3)] + [
    Anchor("I found coins. Should I keep them?", "own", "So:", "I found coins. Give them back?")
]


def known(lm, pairs, *, answers=None, **sections):
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": lm.spec.model_dump(),
            "pairs": {"words": ["honest", "dishonest"], "answers": answers},
            "adapter": {"rank": 12},
            "training": {"batch_size": 2},
            **sections,
        }
    )
    files = BaseFiles(lm.model.config, "here", 0, 0)
    return Known(recipe, files, lm.chat, pairs, 1, anchors=ASKED)


@pytest.fixture(scope="module")
def planner(tiny, tiny_pairs):
    return Planner(known(tiny(), tiny_pairs[:4]))


def test_the_stage_is_the_model_and_its_adapter(planner, tiny, make_adapter):
    lm = tiny()
    stage = planner.stage(planner.known.recipe, FLOAT)
    assert weight_bytes(stage, "none") == sum(p.numel() * 4 for p in lm.model.parameters())
    assert [w.path for w in stage.writers] == [w.path for w in find_writers(lm.model)]
    real = make_adapter(lm)  # rank 12 on the same modules
    assert stage.adapter.paths == real.paths
    assert stage.adapter.num_parameters() == real.num_parameters()


def test_members_take_as_many_times_the_steps(planner):
    plan = planner.known
    spec = plan.recipe.training.model_copy(update={"members": 3})
    three = plan.recipe.model_copy(update={"training": spec})
    assert plan.steps(three) == 3 * plan.steps(plan.recipe) == 3 * 30 * 2


def test_only_products_in_float32_take_the_time_that_was_timed(planner, monkeypatch):
    recipe = planner.known.recipe
    stage = planner.stage(recipe, FLOAT)
    run = planner.run(recipe, FLOAT)._replace(low=3_000, single=500, moved=70)
    rates = {torch.bfloat16: 1_000.0, torch.float32: 50.0}
    monkeypatch.setattr(speed, "product_speed", lambda _r, _s, _d, dtype: rates[dtype])
    monkeypatch.setattr(speed, "memory_speed", lambda _: 10.0)
    found = speed.duration(stage, recipe, run, torch.device("cpu"), True, len(planner.known.train))
    assert found.step == pytest.approx(500 / 50 + 1.6 * (3_000 / 1_000 + 70 / 10))


def test_a_rehearsal_counts_nodes_and_kept_base_sides_as_they_are(planner, tiny, tiny_pairs):
    run = planner.run(planner.known.recipe, FLOAT)
    lm, recipe = tiny(), planner.known.recipe
    objective = Objective(
        lm,
        random_basis(lm.hidden_size, 4, 0).columns,
        recipe.losses,
        recipe.subspace,
        budget=512,
        cache_mb=0,
    )
    base = objective._base_pairs(tiny_pairs[:4])
    sizes = [pair.size for pair in base]
    assert min(sizes) <= run.pair <= 1.2 * max(sizes)
    trees = [
        pack([side for pair in two for side in pair[:3]]).num_nodes
        for two in ([a, b] for a in tiny_pairs[:4] for b in tiny_pairs[:4] if a is not b)
    ]
    assert min(trees) <= run.nodes <= max(trees) and run.passes == 1
    assert run.step > 0 and run.single > 0 and run.moved > 0 and run.low == 0


def test_a_rehearsal_asks_the_recipes_own_anchors(tiny, tiny_pairs):
    lm = tiny()
    losses = {"anchor": {"count": 3, "tokens": 4, "opposites": 1.0, "opposites_count": 1}}
    whole = {"batch_size": 2, "node_budget": 4096}  # one tree
    planner = Planner(known(lm, tiny_pairs[:4], losses=losses, training=whole))
    run = planner.run(planner.known.recipe, FLOAT)
    bare = Planner(known(lm, tiny_pairs[:4], training=whole))
    without = bare.run(bare.known.recipe, FLOAT)
    # Base sides: three answers of four tokens, two of one, in float32 as on that device.
    assert run.answers == (3 * 4 + 2) * lm.hidden_size * 4 and without.answers == 0
    prompts = [lm.chat.continued(a.prompt, a.opening) for a in ASKED]
    prompts.append(lm.chat.continued(ASKED[-1].opposite, ASKED[-1].opening))
    alone = pack(prompts).num_nodes
    # Pairs and anchors share what every prompt begins with.
    assert alone / 2 < run.nodes - without.nodes <= alone + 3 * 4


def test_answers_of_the_models_own_are_planned_with_their_longest_length(tiny, tiny_pairs):
    lm = tiny()
    answers = {"count": 16, "tokens": 5, "samples": 1, "held_out": 0.25}
    recipe = known(
        lm,
        tiny_pairs[:4],
        answers=answers,
        losses={"preference": {"count": 2}},
    )
    run = Planner(recipe).run(recipe.recipe, FLOAT)
    assert run.answers == 12 * 2 * 5 * 4  # log p of the tokens of both answers to 12 questions


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_as_small_as_it_is_loaded(tiny, planner, bits):
    loaded = tiny(f"llama-{bits}").model.get_memory_footprint()
    planned = weight_bytes(planner.stage(planner.known.recipe, FLOAT), bits)
    assert planned == pytest.approx(loaded, rel=0.1)


def test_what_does_not_fit_gets_remedies_that_were_tried(planner):
    recipe = planner.known.recipe
    peak = planner.device(recipe, Target("a GPU", FLOAT, None, None)).peak
    tight = Target("a GPU", FLOAT, CONTEXT + int(0.9 * peak), None)
    assert planner.device(recipe, tight).fits is False
    assert planner.device(recipe, tight._replace(memory=CONTEXT + peak)).fits
    found = remedies(planner, tight)
    assert found and all(remedy.peak < peak for remedy in found)
    assert any(remedy.fits for remedy in found)
    # It has two pairs per batch and rank 12 already.
    named = {key.partition("=")[0] for remedy in found for key in remedy.settings}
    assert named <= {"training.node_budget", "model.dtype", "model.quantization"}


def test_words_stand_in_for_a_tokenizer():
    chat = word_chat(None)
    prompt = chat.prompt("Say what you think.")
    row = chat.continued("Say what you think.", "Well, I")
    assert row[: len(prompt)] == prompt and len(row) == len(prompt) + 3
