"""Subspaces and directions: orthonormal, seeded, doing what their names say."""

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.residual_writers import find_writers
from pasto_cli.core.recipe.subspace_expression import SUBSPACE_NAMES, parse_subspace
from pasto_cli.core.steering.factors import decompose
from pasto_cli.core.training import subspaces
from pasto_cli.core.training.directions import choose_directions
from pasto_cli.core.training.subspaces import Basis, SubspaceInputs
from tests.support.variants import DIRECTIONS, SUBSPACES


@pytest.fixture(scope="module")
def states(tiny, tiny_pairs):
    lm = tiny()
    return collect_activations(lm, tiny_pairs[:20], find_writers(lm.model), 512)


@pytest.fixture(scope="module")
def material(tiny, states):
    model = tiny().model
    writers = find_writers(model)
    return SubspaceInputs(
        states.hidden,
        lambda: model.get_output_embeddings().weight.detach(),
        lambda: [dense_weight(w.module) for w in writers],
    )


@pytest.mark.parametrize("text", SUBSPACES)
def test_every_expression_gives_an_orthonormal_basis(text, material):
    basis = subspaces.build(parse_subspace(text), material, rank=4, depth=4, center=False, seed=0)
    assert basis.shape[0] == 64 and 1 <= basis.shape[1] <= 4
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-4)
    again = subspaces.build(parse_subspace(text), material, rank=4, depth=4, center=False, seed=0)
    assert torch.equal(basis, again)


def test_all_names_of_the_grammar_are_built():
    assert set(SUBSPACE_NAMES) <= set(
        " ".join(SUBSPACES).replace("&", " ").replace("~", " ").split()
    )


def test_uncentred_taskdiff_keeps_the_mean_direction_and_centring_throws_it_away():
    torch.manual_seed(0)
    mean = torch.nn.functional.normalize(torch.randn(32), dim=0) * 3
    hidden = torch.zeros(40, 2, 32)
    hidden[:, 1] = torch.randn(40, 32) * 0.5
    hidden[0::2, 1] += mean
    difference = hidden[0::2, 1] - hidden[1::2, 1]
    kept = {
        c: subspaces.captured_share(
            subspaces.taskdiff(hidden, 1, center=c, k=1).columns, difference
        )
        for c in (False, True)
    }
    assert kept[False] > 0.95 > 0.6 > kept[True]


def test_a_complement_is_orthogonal_to_what_it_leaves_out(material):
    read = subspaces.logits_read(material.read_weight(), 32)
    left = subspaces.without(subspaces.taskdiff(material.hidden, 4, center=False), read)
    assert (left.columns.T @ read.columns).abs().max() < 1e-4
    with pytest.raises(PastoError, match="leaves nothing"):
        subspaces.without(Basis(read.columns[:, :3], None), read)


def test_intersections_by_principal_angles():
    e = torch.eye(6)
    shared = subspaces.intersect(Basis(e[:, :3], None), Basis(e[:, [2, 4]], None))
    torch.testing.assert_close(shared.columns.abs(), e[:, 2:3])
    with pytest.raises(PastoError, match="share no direction"):
        subspaces.intersect(Basis(e[:, :2], None), Basis(e[:, 3:5], None))


def test_end_states_are_those_of_a_plain_forward_whatever_the_budget(tiny, tiny_pairs, states):
    lm, pair = tiny(), tiny_pairs[3]
    writer = find_writers(lm.model)[5]
    seen = []
    hook = writer.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([pair.rejected]), output_hidden_states=True)
    hook.remove()
    for layer in range(8):
        torch.testing.assert_close(
            states.hidden[7, layer], out.hidden_states[layer][0, -1], rtol=0, atol=1e-4
        )
    torch.testing.assert_close(states.inputs[writer.path][7], seen[0][0, -1], rtol=0, atol=1e-4)
    other = collect_activations(lm, tiny_pairs[:20], [], 64)
    torch.testing.assert_close(other.hidden, states.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 5, 8])
def test_layers_that_nobody_looks_at_are_not_run(tiny, tiny_pairs, states, layers):
    lm, ran = tiny(), []
    writers = find_writers(lm.model)[:2]  # which runs all layers once
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(lm.layers)
    ]
    found = collect_activations(lm, tiny_pairs[:20], writers, 512, layers)
    for hook in hooks:
        hook.remove()
    assert set(ran) == set(range(layers))
    torch.testing.assert_close(found.hidden, states.hidden[:, : layers + 1], rtol=0, atol=1e-6)
    for path, inputs in found.inputs.items():
        torch.testing.assert_close(inputs, states.inputs[path], rtol=0, atol=1e-6)
    assert (found.normed is None) == (layers < len(lm.layers))
    with torch.no_grad():  # the model is as it was
        assert lm.model(input_ids=torch.tensor([tiny_pairs[0].chosen])).logits.isfinite().all()


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_directions_are_distinct_sorted_and_as_many_as_asked(kind, tiny, states):
    for writer in find_writers(tiny().model)[2:8]:
        factors = decompose(dense_weight(writer.module))
        kept = choose_directions(kind, writer, factors, states, rank=20, seed=0)
        assert len(kept) == 20 == len(set(kept.tolist())) and kept.tolist() == sorted(kept.tolist())
        assert len(choose_directions(kind, writer, factors, states, rank=9999, seed=0)) == len(
            factors.s
        )


def test_random_directions_follow_their_seed_and_differ_between_modules(tiny, states):
    writers = find_writers(tiny().model)[2:4]
    factors = [decompose(dense_weight(w.module)) for w in writers]
    first, second, again = (
        choose_directions("random", writers[i], factors[i], states, rank=20, seed=0)
        for i in (0, 1, 0)
    )
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(
        first, choose_directions("random", writers[0], factors[0], states, rank=20, seed=1)
    )


def test_residual_directions_find_a_planted_difference(tiny, states):
    """A difference along one singular direction must be among the kept, however small its singular
    value."""
    writer = find_writers(tiny().model)[6]
    factors = decompose(dense_weight(writer.module))
    hidden = torch.randn(states.hidden.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    hidden[0::2, writer.layer] += 50 * factors.u[:, 40]
    kept = choose_directions(
        "residual", writer, factors, states._replace(hidden=hidden), rank=9, seed=0
    )
    assert 40 in kept.tolist()
