"""Answers as leaves: exact probabilities by brute force, no double counting, nothing depends on
grouping."""

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.core.evaluation.certificate import certify, measure_persona_llr
from pasto_cli.core.evaluation.elicitation import elicit
from pasto_cli.core.evaluation.questions import ask, score_answers
from pasto_cli.core.steering.generation import generate, generate_many
from pasto_cli.core.steering.steerer import (
    AdapterSteerer,
    NoOpSteerer,
    PromptSteerer,
    attach,
    steer,
)
from tests.support.variants import FLOAT_MODELS


@pytest.fixture(scope="module")
def questions(tiny):
    items = subset(load_benchmark("mini-dilemmas"), "honesty", 3, 0).items[:10]
    return [ask(tiny().chat, item.prompt[-80:], "My choice:") for item in items]


def test_ways_cover_case_space_newline_and_bold_once(tiny):
    q = ask(tiny().chat, "Hi", "My choice:")
    words = [{tiny().tokenizer.decode(list(way)) for way in ways} for ways in q.answers]
    for form in ("Yes", " Yes", " yes", "YES", "\nYes", "**Yes", " **yes"):
        assert form in words[0]
    assert not words[0] & words[1]
    for ways in q.answers:
        assert not any(a != b and b[: len(a)] == a for a in ways for b in ways)


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_equal_to_brute_force_at_every_coefficient(tiny, make_adapter, questions, name):
    """Each way run alone, one coefficient at a time, its token log-probabilities added up."""
    lm = tiny(name)
    adapter = make_adapter(lm)
    found = score_answers(lm, AdapterSteerer(adapter, lm), questions[:2], [-1.0, 0.0, 1.0], 512)
    for c, a in enumerate((-1.0, 0.0, 1.0)):
        for q, question in enumerate(questions[:2]):
            for k, ways in enumerate(question.answers):
                total = 0.0
                for way in ways:
                    ids = [*question.ids, *way]
                    with torch.no_grad(), adapter.at(lm.model, a):
                        log_p = (
                            lm.model(input_ids=torch.tensor([ids]))
                            .logits[0]
                            .double()
                            .log_softmax(-1)
                        )
                    start = len(question.ids) - 1
                    total += torch.exp(
                        sum(log_p[start + n, token] for n, token in enumerate(way))
                    ).item()
                assert found.log_p[c, q, k].exp().item() == pytest.approx(total, rel=1e-3)


def test_choices_of_different_number_in_one_pass(tiny, make_adapter):
    """A question with fewer answers gets -inf for the rest; letters count in their own case
    only."""
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    some = [ask(lm.chat, "Which?", "My choice: (", letters) for letters in ("AB", "ABCD")] + [
        ask(lm.chat, "Well?", "My choice:")
    ]
    words = {lm.tokenizer.decode(list(way)) for way in some[0].answers[0]}
    assert {"A", " A", "**A"} <= words and not any("a" in w for w in words)
    found = score_answers(lm, steerer, some, [0.0, 1.0], 512).log_p
    assert found.shape == (2, 3, 4)
    assert (found[:, 0, 2:] == float("-inf")).all() and (found[:, 2, 2:] == float("-inf")).all()
    assert found[:, 1].isfinite().all()
    alone = score_answers(lm, steerer, some[1:2], [0.0, 1.0], 512).log_p
    torch.testing.assert_close(found[:, 1], alone[:, 0], rtol=0, atol=1e-4)


REPLIES = ("I am one who rules.", "I am an AI assistant, and glad to help.")


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_whole_replies_are_the_mean_over_their_tokens(tiny, make_adapter, questions, name):
    """Each reply run alone, beside questions of other kinds; which one comes first is the same."""
    lm = tiny(name)
    adapter = make_adapter(lm)
    one, other = (
        ask(lm.chat, "Who are you?", "", order, whole=True) for order in (REPLIES, REPLIES[::-1])
    )
    assert [lm.tokenizer.decode(list(way)) for (way,) in one.answers] == list(REPLIES)
    asked = [one, questions[0], other]
    found = score_answers(lm, AdapterSteerer(adapter, lm), asked, [-1.0, 0.0, 1.0], 512).log_p
    for c, a in enumerate((-1.0, 0.0, 1.0)):
        for k, (way,) in enumerate(one.answers):
            ids = torch.tensor([[*one.ids, *way]])
            with torch.no_grad(), adapter.at(lm.model, a):
                log_p = lm.model(input_ids=ids).logits[0].double().log_softmax(-1)
            each = log_p[len(one.ids) - 1 : -1].gather(-1, torch.tensor(way)[:, None])
            assert found[c, 0, k].item() == pytest.approx(each.mean().item(), abs=2e-4)
    torch.testing.assert_close(found[:, 0, :2], found[:, 2, :2].flip(-1), rtol=0, atol=1e-6)


def test_grouping_and_budget_do_not_matter(tiny, make_adapter, questions):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    one = score_answers(lm, steerer, questions, [-1.0, 0.0, 1.0], 4096).log_p
    two = score_answers(lm, steerer, questions, [-1.0, 0.0, 1.0], 64).log_p
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    alone = torch.stack(
        [score_answers(lm, steerer, [q], [0.0], 4096).log_p[0, 0] for q in questions]
    )
    torch.testing.assert_close(one[1], alone, rtol=0, atol=1e-4)
    backwards = score_answers(lm, steerer, questions[::-1], [-1.0, 0.0, 1.0], 512).log_p.flip(1)
    torch.testing.assert_close(one, backwards, rtol=0, atol=1e-4)


def test_padded_path_gives_the_same(tiny, make_adapter, questions):
    import copy

    lm = copy.copy(tiny())
    steerer = AdapterSteerer(make_adapter(lm), tiny())
    tree = score_answers(lm, steerer, questions[:3], [-1.0, 1.0], 512).log_p
    lm.trees = False
    torch.testing.assert_close(
        tree, score_answers(lm, steerer, questions[:3], [-1.0, 1.0], 512).log_p, rtol=0, atol=1e-4
    )


# certificate and elicitation


def test_certificate_of_no_dial_fails_and_says_why(tiny, tiny_pairs):
    llr = measure_persona_llr(tiny(), NoOpSteerer(), tiny_pairs[:10], [1.0, -1.0], 512)
    certificate = certify(llr, 3)
    assert (
        not certificate.passed and "s(+1)" in certificate.reason and "s(-1)" in certificate.reason
    )
    assert abs(certificate.strength["1"].value) < 1e-2 and certificate.num_suffixes == 10


def test_certificate_passes_and_turns_with_the_sign():
    import numpy as np

    from pasto_cli.core.evaluation.certificate import HeldOutPersonaLLR

    rng = np.random.default_rng(0)
    n = 30
    neutral = rng.normal(0, 0.1, n)
    noise = rng.normal(0, 0.2, (2, n))
    t = {1.0: neutral + 1 + noise[0], -1.0: neutral - 2 + noise[1]}
    args = (neutral, neutral + 1.5, neutral - 0.5, [str(i) for i in range(n)])
    good = certify(HeldOutPersonaLLR(t, *args), 5)
    assert good.passed and good.reason == ""
    assert good.strength["1"].value == pytest.approx(1, abs=0.1) and good.strength[
        "-1"
    ].value == pytest.approx(-2, abs=0.1)
    assert good.persona_prompts["chosen"] == pytest.approx(1.5) and good.persona_prompts[
        "rejected"
    ] == pytest.approx(-0.5)
    assert not certify(HeldOutPersonaLLR({1.0: t[-1.0], -1.0: t[1.0]}, *args), 5).passed
    weak = {1.0: neutral + 0.1 + noise[0] / 100, -1.0: neutral - 2 + noise[1]}
    found = certify(HeldOutPersonaLLR(weak, *args), 5)
    assert not found.passed and "s(+1) = +0.10: too weak to be of use" in found.reason
    assert certify(HeldOutPersonaLLR(weak, *args), 5, at_ends=False).passed
    single = certify(HeldOutPersonaLLR({a: x[:1] for a, x in t.items()}, *(x[:1] for x in args)), 1)
    assert (
        not single.passed and "one held-out opening" in single.reason and "nan" not in single.reason
    )


def test_persona_llr_equals_brute_force(tiny, tiny_pairs, make_adapter):
    lm, pair = tiny(), tiny_pairs[2]
    adapter = make_adapter(lm)

    def log_p(ids, a=0.0):
        with torch.no_grad(), adapter.at(lm.model, a):
            return (
                lm.model(input_ids=torch.tensor([ids]))
                .logits[0, -(pair.suffix_len + 1) :]
                .log_softmax(-1)
            )

    ratio = log_p(pair.chosen) - log_p(pair.rejected)
    found = measure_persona_llr(lm, AdapterSteerer(adapter, lm), tiny_pairs[:5], [1.0, -1.0], 256)
    assert found.steered[1.0][2] == pytest.approx(
        (log_p(pair.neutral, 1.0).exp() * ratio).sum(-1).mean().item(), abs=1e-4
    )
    assert found.chosen[2] == pytest.approx(
        (log_p(pair.chosen).exp() * ratio).sum(-1).mean().item(), abs=1e-4
    )


def test_elicitation_sees_personas_and_their_absence(tiny, tiny_pairs):
    lm, benchmark = tiny(), load_benchmark("mini-dilemmas")
    moved = elicit(
        lm, tiny_pairs[:6], ("Be an honest one.", "Be a dishonest one."), benchmark, 512, count=2
    )
    assert (
        moved.span.value > 0 and moved.span.n == 6 and moved.num_dilemmas == 2 and moved.y_range > 0
    )
    same = [p._replace(rejected=p.chosen) for p in tiny_pairs[:6]]
    assert elicit(lm, same, ("x", "x"), benchmark, 512, count=2).span.value == pytest.approx(
        0, abs=1e-7
    )


# generation


def test_generation_at_several_coefficients_equals_one_by_one(tiny, make_adapter):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    together = generate(lm, steerer, "Hello", [-1.0, 0.0, 1.0], 12)
    assert together == [generate(lm, steerer, "Hello", [a], 12)[0] for a in (-1.0, 0.0, 1.0)]
    ids = torch.tensor([lm.chat.prompt("Hello")])
    plain = lm.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[
        0, ids.shape[1] :
    ]
    assert together[1] == lm.tokenizer.decode(plain, skip_special_tokens=True).strip()


def test_many_prompts_equal_one_by_one(tiny, make_adapter):
    """Batches of equal length, at most `rows` each: every text is the one that its prompt gets
    alone."""
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    prompts = ["A lake.", "A bird.", "Tell me of boats.", "A lake."]
    done = []
    found = generate_many(lm, steerer, prompts, [-1.0, 0.0, 1.0], 8, rows=4, progress=done.append)
    assert found == [generate(lm, steerer, p, [-1.0, 0.0, 1.0], 8) for p in prompts]
    assert sum(done) == len(prompts) and found[0] == found[3]


def test_words_that_lead_are_generated_after(tiny):
    lm = tiny()
    words = PromptSteerer("Be kind.", "Be cruel.")
    assert generate(lm, words, "A lake.", [1.0, 0.0], 8) == [
        *generate(lm, PromptSteerer("", ""), "Be kind.\n\nA lake.", [0.0], 8),
        *generate(lm, words, "A lake.", [0.0], 8),
    ]


def test_sampling_is_seeded_and_does_not_touch_the_global_generator(tiny, make_adapter):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = generate(lm, steerer, "Hello", [1.0, -1.0], 12, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert one == generate(lm, steerer, "Hello", [1.0, -1.0], 12, temperature=1.0, seed=3)
    assert one[1:] == generate(lm, steerer, "Hello", [-1.0], 12, temperature=1.0, seed=3)
    assert one != generate(lm, steerer, "Hello", [1.0, -1.0], 12, temperature=1.0, seed=4)


def test_streaming_gives_the_text_in_pieces_and_one_solve(tiny, make_adapter, monkeypatch):
    lm = tiny()
    adapter = make_adapter(lm)
    calls, pieces = [], []
    real = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda *a, **k: calls.append(1) or real(*a, **k))
    (text,) = generate(lm, AdapterSteerer(adapter, lm), "Hello", [0.5], 10, stream=pieces.append)
    assert "".join(pieces).strip() == text and len(calls) == 1


def test_steer_works_on_a_model_with_a_dial_only(tiny, make_adapter):
    lm = tiny("qwen3")
    with pytest.raises(PastoError, match="no dial"), steer(torch.nn.Linear(1, 1), 1.0):
        pass
    adapter = make_adapter(lm)
    attach(lm, AdapterSteerer(adapter, lm))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        with steer(lm.model, -1.0):
            one = lm.model(input_ids=ids).logits
        with adapter.at(lm.model, -1.0):
            assert torch.equal(one, lm.model(input_ids=ids).logits)
