"""The batched loop: every row's states are those that it gets alone, whatever the grouping."""

from contextlib import contextmanager

import pytest
import torch

from pasto_cli.core.models import distributed
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.steering.steerer import AdapterSteerer

ROWS = [list(range(40, 70)), list(range(40, 60)) + [7, 8], [5, 6, 7], list(range(40, 60)), [5, 6]]


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("budget", [None, 10_000, 40, 1])
def test_rows_have_the_states_that_they_have_alone(tiny, make_adapter, trees, budget):
    import copy

    lm = copy.copy(tiny())
    lm.trees = trees
    steerer, coefficients, window = (
        AdapterSteerer(make_adapter(lm), lm),
        [1.0, 0.0, -1.0],
        slice(-2, None),
    )
    with torch.no_grad():
        found = {
            index: (states.last(window), states.depth())
            for index, states in hidden_states(
                lm, ROWS, budget, steer=steerer.at, coefficients=coefficients, depth=4
            )
        }
        assert sorted(found) == list(range(len(ROWS)))
        for index, row in enumerate(ROWS):
            for c, a in enumerate(coefficients):
                with steerer.at(a):
                    plain = lm.model.base_model(
                        torch.tensor([row]), output_hidden_states=True, use_cache=False
                    )
                last, depth = found[index][0][c], found[index][1][c]
                torch.testing.assert_close(
                    last, plain.last_hidden_state[0, window], rtol=0, atol=1e-4
                )
                torch.testing.assert_close(depth, plain.hidden_states[4][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("trees", [True, False])
def test_the_steerer_is_entered_once_for_all_passes_of_one_size(tiny, trees):
    import copy

    lm = copy.copy(tiny())
    lm.trees = trees
    entered = []

    @contextmanager
    def steer(per_row):
        entered.append(per_row)
        yield

    rows = [[n, n + 1, n + 2] for n in range(40, 60)]
    with torch.no_grad():
        passes = list(hidden_states(lm, rows, 12, steer=steer, coefficients=[1.0, -1.0]))
    assert len(passes) == len(rows)
    assert entered == [[1.0, -1.0] if trees else [1.0] * 4 + [-1.0] * 4]


def test_map_groups_gives_every_result_once_and_tells_of_it():
    told = []
    found = distributed.map_groups([[2, 0], [1]], lambda group: {i: -i for i in group}, told.append)
    assert found == {0: 0, 1: -1, 2: -2} and told == [2, 1]
