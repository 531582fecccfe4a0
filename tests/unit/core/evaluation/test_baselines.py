"""Baselines: laws that every steerer keeps, and each against its own definition."""

import math

import numpy as np
import pytest
import torch

from pasto_cli.core.evaluation.baselines import BASELINES, BaselineInputs, build_baseline
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    coefficient_at_budget,
    make_probe,
    measure_disturbance,
    summarise_disturbance,
)
from pasto_cli.core.models.activations import collect_activations
from pasto_cli.core.steering.cayley import bounded_skew, largest_angle
from pasto_cli.core.steering.steerer import NoOpSteerer, PromptSteerer, Scaled
from pasto_cli.core.steering.vectors import mean_directions, pca_directions

IDS = torch.arange(40, 70)[None]


@pytest.fixture()
def build(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    states = collect_activations(lm, tiny_pairs[:20], [], 512)
    adapter = make_adapter(lm)
    inputs = BaselineInputs(
        ("Be an honest one.", "Be a dishonest one."), states, adapter, depth=4, seed=0
    )
    return lambda name: build_baseline(name, lm, inputs)


@pytest.mark.parametrize("name", BASELINES)
def test_steerer_laws(tiny, build, name):
    """Exact base at 0 and after leaving, also after an exception; rows of one batch have their own
    coefficients."""
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
        assert (
            moved == 0
            and steerer.prompt_prefix(0)
            == ""
            != steerer.prompt_prefix(1.0)
            != steerer.prompt_prefix(-1.0)
            != ""
        )
    else:
        assert moved > 1e-2


def test_mean_diff_is_the_mean_difference(tiny, tiny_pairs, build):
    lm = tiny()
    pair_states = []
    with torch.no_grad():
        for pair in tiny_pairs[:20]:
            sides = [
                lm.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[4][
                    0, -1
                ]
                for row in pair[:2]
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
    assert (mean_directions(hidden)[0] @ direction).item() == pytest.approx(
        2 * strength.mean().item(), abs=0.2
    )


def test_random_rotation_has_each_modules_own_angle(tiny, make_adapter, build):
    adapter, random = make_adapter(tiny()), build("random-rotation").adapter
    for (path, one), (other_path, other) in zip(adapter.items(), random.items(), strict=True):
        angles = [
            largest_angle(bounded_skew(r.theta, "spectral", math.radians(45))) for r in (one, other)
        ]
        assert path == other_path and angles[0] == pytest.approx(angles[1], abs=0.05)
        assert torch.equal(one.u, other.u) and not torch.equal(one.theta, other.theta)


PROBE = ["Tell me about a lake.", "Describe a street.", "What is a boat?"]


@pytest.mark.parametrize("name", ["control-vector", "mean-diff", "random-rotation"])
def test_coefficient_at_budget_hits_the_budget(tiny, build, name):
    lm = tiny()
    steerer = build(name)
    probe = make_probe(lm, PROBE, 6)
    assert measure_disturbance(lm, steerer, probe, 0.0).kl_p95 == 0.0
    for sign in (1.0, -1.0):
        size = coefficient_at_budget(lm, steerer, probe, sign, target=0.05)
        assert measure_disturbance(lm, steerer, probe, sign * size).kl_p95 == pytest.approx(
            0.05, rel=0.08
        )
    scaled = Scaled(steerer, 2.0, 0.5)
    for a, own in ((1.0, 2.0), (-1.0, -0.5), (0.0, 0.0)):
        assert (
            measure_disturbance(lm, scaled, probe, a).kl_p95
            == measure_disturbance(lm, steerer, probe, own).kl_p95
        )


def test_a_prompt_with_nothing_before_it_is_read_from_its_second_token(tiny, monkeypatch):
    """A template that writes the text alone: nothing predicts the first token."""
    lm, prompts = tiny(), ["Tell me about a lake.", "Why?"]
    bare = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    monkeypatch.setattr(lm.chat, "prompt", lambda text: bare[prompts.index(text)])
    found = measure_disturbance(lm, NoOpSteerer(), make_probe(lm, prompts, 4), 0.0)
    for row, nll, kl in zip(bare, found.nll, found.kl, strict=True):
        log_p = lm.model(torch.tensor([row])).logits[0].log_softmax(-1)  # (t, v)
        expected = [-float(log_p[i, token]) for i, token in enumerate(row[1:])]
        assert nll.tolist() == pytest.approx(expected, abs=1e-4) and len(kl) == 4


def test_a_steerer_that_cannot_disturb_gives_up(tiny, make_adapter):
    lm = tiny()
    probe = make_probe(lm, PROBE, 4)
    assert (
        coefficient_at_budget(
            lm, PromptSteerer("", ""), probe._replace(prompts=PROBE), 1.0, target=1e9
        )
        == LARGEST_COEFFICIENT
    )


def test_a_probe_holds_the_answer_that_each_prompt_gets_alone(tiny):
    """Prompts of one length share a batch; an answer that ends early is cut there, whatever its
    neighbours say."""
    lm = tiny()
    prompts = ["Tell me of a lake.", "Tell me of a hill.", "Tell me of a bird.", "A street?"]
    together = make_probe(lm, prompts, 10)
    for prompt, answer in zip(prompts, together.answers, strict=True):
        ids = torch.tensor([lm.chat.prompt(prompt)])
        alone = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
        assert answer == alone[0, ids.shape[1] :].tolist()
    first = together.answers[0][0]
    before = lm.model.generation_config.eos_token_id
    lm.model.generation_config.eos_token_id = [first, 257]
    try:
        assert make_probe(lm, prompts, 10).answers[0] == [first]
    finally:
        lm.model.generation_config.eos_token_id = before


@pytest.mark.parametrize("name", ["control-vector", "prompt"])
def test_disturbance_equals_a_plain_computation(tiny, build, name):
    """KL on the base's own greedy answer, NLL of the prompt's own words; plain forwards, one row at
    a time."""
    lm = tiny()
    steerer = build(name)
    probe = make_probe(lm, PROBE, 5)
    found = measure_disturbance(lm, steerer, probe, 1.0)
    for index, prompt in enumerate(PROBE):
        answer = probe.answers[index]
        lead = steerer.prompt_prefix(1.0) if name == "prompt" else ""
        plain, steered = lm.chat.prompt(prompt) + answer, lm.chat.prompt(lead + prompt) + answer
        with torch.no_grad():
            log_p0 = lm.model(input_ids=torch.tensor([plain])).logits[0].log_softmax(-1)
            with steerer.at(1.0):
                log_p = lm.model(input_ids=torch.tensor([steered])).logits[0].log_softmax(-1)
        n = len(answer)
        kl = (log_p0[-n - 1 : -1].exp() * (log_p0[-n - 1 : -1] - log_p[-n - 1 : -1])).sum(-1)
        assert found.kl[index] == pytest.approx(kl.numpy(), abs=1e-4)
        text = lm.chat.text(lead + prompt)
        start, end = (
            len(lm.chat.encode(text[: text.index(prompt) + cut])) for cut in (0, len(prompt))
        )
        assert probe.words[index] <= end - start + 1
        end = len(steered) - n - probe.tail
        words = [-log_p[i - 1, steered[i]].item() for i in range(end - probe.words[index], end)]
        assert found.nll[index] == pytest.approx(words, abs=1e-4)
    zero = measure_disturbance(lm, steerer, probe, 0.0)
    figures = summarise_disturbance(found, zero)
    assert figures.nll_shift.value == pytest.approx(
        np.concatenate(found.nll).mean() - np.concatenate(zero.nll).mean()
    )
    assert (
        figures.kl_p95.low <= figures.kl_p95.value <= figures.kl_p95.high and figures.kl_p95.n == 3
    )
