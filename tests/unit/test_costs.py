"""Operation counts: forward calls, nodes, solves, decompositions, rows of the output head. Seconds
are `make bench`'s."""

from contextlib import contextmanager

import pytest
import torch

from pasto_cli.core.evaluation.questions import ask, score_answers
from pasto_cli.core.models.residual_writers import find_writers
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import Recipe, SubspaceSpec
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.core.training import objective, svd_cache
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis
from pasto_cli.workflows import progress
from pasto_cli.workflows.prepare import Tokens, prepare


class Counts:
    """What a model was asked for."""

    def __init__(self):
        self.forwards, self.nodes, self.head_rows, self.solves = 0, 0, 0, 0


@pytest.fixture()
def counting(monkeypatch):
    """Counts of a block on a model."""

    @contextmanager
    def count(lm):
        counts = Counts()
        real_solve, real_head = torch.linalg.solve, type(lm).head

        def solve(*args, **kwargs):
            counts.solves += 1
            return real_solve(*args, **kwargs)

        def head(self, last):
            counts.head_rows += last.numel() // last.shape[-1]
            return real_head(self, last)

        def forward(_module, _args, kwargs, _output):
            counts.forwards += 1
            counts.nodes += kwargs["input_ids"].numel()

        hook = lm.model.base_model.register_forward_hook(forward, with_kwargs=True)
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "solve", solve)
            patch.setattr(type(lm), "head", head)
            try:
                yield counts
            finally:
                hook.remove()

    return count


def an_objective(lm, budget=100_000):
    return Objective(
        lm,
        random_basis(lm.hidden_size, 4, 0).columns,
        LossesSpec(),
        SubspaceSpec(),
        budget=budget,
        cache_mb=64,
    )


def distinct(pairs):
    return pack([row for p in pairs for row in (p.chosen, p.rejected, p.neutral)]).num_nodes


def test_a_training_step_is_one_forward_of_the_distinct_tokens_and_one_solve(
    tiny, tiny_pairs, make_adapter, counting
):
    lm, batch = tiny(), tiny_pairs[:4]
    loss, adapter = an_objective(lm), make_adapter(tiny())
    loss.remember(batch)
    with counting(lm) as counts:
        loss(adapter, batch).total.backward()
    assert (counts.forwards, counts.solves) == (1, 1)
    assert counts.nodes == 2 * distinct(batch)  # +1 and -1
    # Steered sides at both signs and the base side once, at the suffix and the token before it;
    # nothing twice.
    assert counts.head_rows == 9 * sum(p.suffix_len + 1 for p in batch)


def test_a_budget_cuts_a_step_into_trees_that_share_one_solve(
    tiny, tiny_pairs, make_adapter, counting
):
    lm, batch = tiny(), tiny_pairs[:4]
    whole, parts, adapter = an_objective(lm), an_objective(lm, budget=300), make_adapter(tiny())
    expected = whole(adapter, batch).total
    parts.remember(batch)
    with counting(lm) as counts:
        got = parts(adapter, batch).total
    assert counts.forwards > 1 and counts.solves == 1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_base_side_is_computed_once(tiny, tiny_pairs, make_adapter, counting):
    lm, batch = tiny(), tiny_pairs[:4]
    loss = an_objective(lm)
    with counting(lm) as counts:
        loss.remember(batch)
    assert counts.forwards == 1 and counts.nodes == distinct(batch)
    assert counts.head_rows == 3 * sum(p.suffix_len + 1 for p in batch)


def test_no_vocabulary_wide_tensor_waits_for_the_backward_pass(tiny, tiny_pairs, make_adapter):
    lm, batch = tiny(), tiny_pairs[:4]
    loss, adapter = an_objective(lm), make_adapter(tiny())
    loss.remember(batch)
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss(adapter, batch).total.backward()
    assert kept and not [x.shape for x in kept if x.dim() > 1 and x.shape[-1] == vocabulary]


def test_vocabulary_wide_tensors_hold_a_few_pairs_at_a_time(
    tiny, tiny_pairs, make_adapter, monkeypatch
):
    lm, batch = tiny(), tiny_pairs[:6]
    loss, adapter = an_objective(lm), make_adapter(tiny())
    loss.remember(batch)
    largest, real = [], type(lm).head
    monkeypatch.setattr(
        type(lm),
        "head",
        lambda self, last: largest.append(last.numel() // last.shape[-1]) or real(self, last),
    )
    monkeypatch.setattr(objective, "head_bytes", lambda *_: 0)
    loss(adapter, batch).total.backward()
    assert max(largest) <= 4 * max(p.suffix_len + 1 for p in batch)


def test_another_coefficient_is_no_other_forward(tiny, make_adapter, counting):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    questions = [ask(lm.chat, f"Is {n} even?", "I say", ("Yes", "No")) for n in range(6)]
    found = {}
    for coefficients in ([0.5], [-1.0, -0.5, 0.0, 0.5, 1.0]):
        with counting(lm) as found[len(coefficients)]:
            score_answers(lm, steerer, questions, coefficients, 4096)
    one, five = found[1], found[5]
    assert one.forwards == five.forwards == 1
    assert five.nodes == 5 * one.nodes and five.head_rows == 5 * one.head_rows
    assert one.solves == 1 and five.solves == 2  # of 0.5 and of 1
    rows = [[*q.ids, *way[:-1]] for q in questions for ways in q.answers for way in ways]
    assert one.nodes == pack(rows).num_nodes


def test_generation_solves_once_however_long_the_text(tiny, make_adapter, counting):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    with counting(lm) as counts:
        generate(lm, steerer, "Hello", [1.0], max_new_tokens=12)
    assert counts.solves == 1 and 1 < counts.forwards <= 12
    prompt = len(lm.chat.prompt("Hello"))
    assert counts.nodes == prompt + counts.forwards - 1  # one new token a pass


def test_a_start_decomposes_the_modules_used_and_runs_the_layers_looked_at(
    tiny, tiny_pairs, monkeypatch
):
    lm = tiny()
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"source": "random:llama"},
            "pairs": {"words": ["a", "b"]},
            "adapter": {"rank": 8, "max_modules": 4},
        }
    )
    tokens = Tokens(tiny_pairs[:20], tiny_pairs[20:24], tiny_pairs[24:28], 4)
    solved, ran, real = [], [], svd_cache.decompose
    monkeypatch.setattr(svd_cache, "decompose", lambda w: solved.append(w.shape) or real(w))
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(lm.layers)
    ]
    # The few tokens that show what writes to the residual stream run through all of them.
    found = find_writers(lm.model)
    ran.clear()
    monkeypatch.setattr("pasto_cli.workflows.prepare.find_writers", lambda _: found)
    try:
        adapter, _ = prepare(lm, tokens, recipe, progress.Silent())
        first = len(solved)
        prepare(lm, tokens, recipe, progress.Silent())
    finally:
        for hook in hooks:
            hook.remove()
    assert (
        first == len(solved) == len(adapter.paths) == 4
    )  # the second time they come from the cache
    assert max(ran) < len(lm.layers) - 1
