"""Token trees: one forward of the tree is one forward per row, logits and gradients, whatever the
grouping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.models.forward import run_packed, settle_packing
from pasto_cli.core.models.tokentree import cut, pack
from tests.support.examples import examples
from tests.support.variants import FLOAT_MODELS, MODELS

ROWS = [
    list(range(40, 90)),
    list(range(40, 80)) + [7, 8, 9] * 3,
    list(range(40, 60)),
    [5, 6, 7],
    list(range(40, 60)) + [11],
]


def test_nodes_are_shared_and_paths_spell_the_rows():
    packed = pack([[1, 2, 3], [1, 2, 4], [1, 2], [5]])
    assert packed.num_nodes == 5
    ids = packed.input_ids[0]
    assert [ids[p].tolist() for p in packed.paths] == [[1, 2, 3], [1, 2, 4], [1, 2], [5]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 2, 0]
    assert packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12))
def test_tree_laws(rows):
    packed = pack(rows)
    prefixes = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert packed.num_nodes == len(prefixes)  # each distinct beginning is one node
    mask = packed.mask[0, 0]
    assert (
        mask.sum(-1) == packed.position_ids[0] + 1
    ).all()  # a node sees its ancestors and itself
    for row, path in zip(rows, packed.paths, strict=True):
        assert packed.input_ids[0][path].tolist() == row
        assert mask[path[-1]].nonzero().flatten().tolist() == sorted(path.tolist())


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=20),
    st.integers(1, 30),
    st.booleans(),
)
def test_cut_keeps_every_row_once_and_the_budget(rows, budget, tree):
    groups = cut(rows, budget, tree)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    for group in groups:
        assert len(group) == 1 or pack([rows[i] for i in group], tree).num_nodes <= budget


@pytest.mark.parametrize("name", FLOAT_MODELS)
@pytest.mark.parametrize("tree", [True, False])
def test_packed_equals_plain(tiny, name, tree):
    lm = tiny(name)
    with torch.no_grad():
        packed = pack(ROWS, tree)
        last = run_packed(lm, packed).last[0]
        for row, path in zip(ROWS, packed.paths, strict=True):
            plain = lm.model(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(lm.head(last[path]), plain.float(), rtol=0, atol=1e-4)


def test_gradients_equal_plain(tiny, make_adapter):
    lm, rows = tiny(), ROWS[:3]
    grads = []
    for tree in (True, False):
        adapter = make_adapter(lm)
        if tree:
            packed = pack(rows)
            with adapter.at(lm.model, [1.0, -1.0]):
                states = run_packed(lm, packed, copies=2, depth=4)
            total = sum(
                states.last[0, p].square().sum() + states.depth[1, p].sum() for p in packed.paths
            )
        else:
            total = 0.0
            for row in rows:
                for index, a in enumerate((1.0, -1.0)):
                    with adapter.at(lm.model, a):
                        states = run_packed(lm, pack([row], tree=False), depth=4)
                    total = total + (
                        states.last.square().sum() if index == 0 else states.depth.sum()
                    )
        total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in adapter.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-3)


@examples(20)
@given(order=st.permutations(range(len(ROWS))))
def test_order_of_rows_does_not_matter(tiny, order):
    lm = tiny("gemma3")
    with torch.no_grad():
        first, other = pack(ROWS), pack([ROWS[i] for i in order])
        a, b = run_packed(lm, first).last[0], run_packed(lm, other).last[0]
        for position, index in enumerate(order):
            torch.testing.assert_close(
                b[other.paths[position]], a[first.paths[index]], rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("name", MODELS)
def test_trees_are_used_where_they_are_exact(tiny, name):
    assert tiny(name).trees


def test_a_model_that_ignores_masks_falls_back_and_says_so(tiny, monkeypatch):
    import copy

    from pasto_cli.core.models import forward

    lm = copy.copy(tiny())
    real = forward._masks

    def causal_only(lm, packed, copies):
        """Stands for an attention kernel that knows plain causal attention only."""
        n = packed.input_ids.shape[1]
        return real(
            lm,
            packed._replace(
                mask=torch.ones(n, n, dtype=torch.bool).tril()[None, None].expand(packed.mask.shape)
            ),
            copies,
        )

    monkeypatch.setattr(forward, "_masks", causal_only)
    said = []
    settle_packing(lm, said.append)
    assert not lm.trees and len(said) == 1 and "padded" in said[0]
