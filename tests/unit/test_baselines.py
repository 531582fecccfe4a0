"""Baselines: laws that every steerer keeps, and each against its own definition."""

import math

import pytest
import torch

from pasto_cli.core.adapter import bounded_skew, largest_angle
from pasto_cli.core.calibration import end_states
from pasto_cli.core.strength import Scaled, disturbance, equal_strength, make_probe
from pasto_cli.core.vectors import mean_directions, pca_directions
from pasto_cli.evaluation.baselines import BASELINES, build_baseline

IDS = torch.arange(40, 70)[None]


@pytest.fixture()
def build(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    hidden = end_states(lm, tiny_pairs[:20], [], 512).hidden
    adapter = make_adapter(lm)
    return lambda name: build_baseline(name, lm, ("Be an honest one.", "Be a dishonest one."), hidden, adapter, 4, 0)


@pytest.mark.parametrize("name", BASELINES)
def test_steerer_laws(tiny, build, name):
    """Exact base at 0 and after leaving, also after an exception; rows of one batch have their own coefficients."""
    lm, steerer = tiny(), build(name)
    with torch.no_grad():
        base = lm.model(input_ids=IDS).logits
        with steerer.at(0.0):
            assert torch.equal(lm.model(input_ids=IDS).logits, base)
        with pytest.raises(ZeroDivisionError), steerer.at(1.0):
            steered = lm.model(input_ids=IDS).logits
            raise ZeroDivisionError
        assert torch.equal(lm.model(input_ids=IDS).logits, base)
        with steerer.at([0.0, 1.0]):
            both = lm.model(input_ids=IDS.repeat(2, 1)).logits
    torch.testing.assert_close(both[0], base[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], steered[0], rtol=0, atol=1e-4)
    moved = (steered - base).abs().max()
    if "prompt" in name:
        assert moved == 0 and steerer.lead(0) == "" != steerer.lead(1.0) != steerer.lead(-1.0) != ""
    else:
        assert moved > 1e-2


def test_mean_diff_is_the_mean_difference(tiny, tiny_pairs, build):
    lm = tiny()
    pair_states = []
    with torch.no_grad():
        for pair in tiny_pairs[:20]:
            sides = [
                lm.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[4][0, -1] for row in pair[:2]
            ]
            pair_states.append(sides[0] - sides[1])
    expected = torch.stack(pair_states).mean(0)
    torch.testing.assert_close(build("mean-diff").vectors[3], expected, rtol=0, atol=1e-4)


def test_pca_finds_a_planted_direction_and_its_sign():
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    hidden = torch.randn(60, 3, 16) * 0.1
    strength = 3 + torch.rand(30)  # PCA centres: only a varying part of the difference is seen
    hidden[0::2, 1] += strength[:, None] * direction * 2
    found = pca_directions(hidden)[0]
    assert found.norm().item() == pytest.approx(1, abs=1e-5)
    assert (found @ direction).item() > 0.9
    assert (mean_directions(hidden)[0] @ direction).item() == pytest.approx(2 * strength.mean().item(), abs=0.2)


def test_random_rotation_has_each_modules_own_angle(tiny, make_adapter, build):
    adapter, random = make_adapter(tiny()), build("random-rotation").adapter
    for (path, one), (other_path, other) in zip(adapter.items(), random.items(), strict=True):
        angles = [largest_angle(bounded_skew(r.theta, "spectral", math.radians(45))) for r in (one, other)]
        assert path == other_path and angles[0] == pytest.approx(angles[1], abs=0.05)
        assert torch.equal(one.u, other.u) and not torch.equal(one.theta, other.theta)


@pytest.mark.parametrize("name", ["control-vector", "mean-diff", "random-rotation"])
def test_equal_strength_hits_the_budget(tiny, build, name):
    lm = tiny()
    steerer = build(name)
    probe = make_probe(lm, ["Tell me about a lake.", "Describe a street.", "What is a boat?"], 6)
    assert disturbance(lm, steerer, probe, 0.0) == 0.0
    for sign in (1.0, -1.0):
        size = equal_strength(lm, steerer, probe, sign, target=0.05, rounds=14)
        assert disturbance(lm, steerer, probe, sign * size) == pytest.approx(0.05, rel=0.05)
    scaled = Scaled(steerer, 2.0, 0.5)
    for a, own in ((1.0, 2.0), (-1.0, -0.5), (0.0, 0.0)):
        assert disturbance(lm, scaled, probe, a) == disturbance(lm, steerer, probe, own)
