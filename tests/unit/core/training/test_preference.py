"""The preference term: laws, a slow reference, what is drawn, what is held out, what is cached."""

import pytest
import torch

from pasto_cli.base.cache import cache_dir
from pasto_cli.core.models.forward import settle_packing
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.pairs.answers import AnswerPair, Asked, split_answers
from pasto_cli.core.recipe.answers_spec import AnswersSpec
from pasto_cli.core.recipe.losses_spec import LossesSpec, PreferenceSpec
from pasto_cli.core.recipe.schema import ModelSpec, SubspaceSpec
from pasto_cli.core.training import objective, own_answers
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.own_answers import ask_model
from pasto_cli.core.training.preference import LogRatios, Preferences, preference_loss
from pasto_cli.core.training.subspaces import random_basis
from tests.reference import plain
from tests.unit.core.training.test_plain import writers_of

KINDS = ("margin", "bipo")
ALONE = {
    "projection": {"weight": 0},
    "coherence": {"weight": 0},
    "monotonicity": {"weight": 0},
    "neutral": None,
}


def answers_of(seed=0, questions=10):
    """Answers of unlike lengths, any tokens."""
    rng = torch.Generator().manual_seed(seed)

    def some(length):
        return tuple(torch.randint(5, 200, (length,), generator=rng).tolist())

    pairs = []
    for n in range(questions):
        chosen, rejected = some(2 + n % 3), some(5 - n % 2)
        pairs.append(
            AnswerPair(
                question=f"What of {n}?",
                personas=("Be good.", "Be bad."),
                sample=0,
                chosen="x",
                rejected="y",
                chosen_tokens=chosen,
                rejected_tokens=rejected,
            )
        )
    return split_answers(pairs, 0.3, seed)


def objective_of(lm, spec, budget=512, seed=0, others=None):
    losses = LossesSpec.model_validate({**(others or {}), "preference": spec})
    basis = random_basis(lm.hidden_size, 4, 0).columns.to(lm.dtype)
    found = Objective(
        lm,
        basis,
        losses,
        SubspaceSpec(),
        budget=budget,
        cache_mb=64,
        preferences=Preferences(lm, answers_of(), spec, seed),
    )
    found.remember([])
    return found


def ratios(*values, length=4):
    """Log-ratios of pairs from g(+1) and g(-1)."""
    each = [torch.tensor(pair, dtype=torch.float64) for pair in values]
    return [LogRatios(x, length * x) for x in each]


# -- laws


def test_nothing_is_paid_where_the_margins_are_met():
    spec = PreferenceSpec(weight=7.0, margin=0.3)
    assert preference_loss(ratios((0.3, -0.3), (2.0, -0.5)), spec) == 0
    assert preference_loss(ratios((0.0, 0.0)), spec).item() == pytest.approx(7 * 0.6)
    assert preference_loss(ratios((0.1, -0.5)), spec).item() == pytest.approx(7 * 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_exchanging_the_personas_and_the_ends_changes_nothing(kind):
    spec = PreferenceSpec(kind=kind, margin=0.5)
    one = ratios((0.2, -0.1), (0.7, 0.4))
    # The other persona is chosen: g -> -g; what +1 was is -1 now: the two change places.
    other = ratios((0.1, -0.2), (-0.4, -0.7))
    assert preference_loss(one, spec) == pytest.approx(preference_loss(other, spec).item())
    assert preference_loss(one, spec) != pytest.approx(
        preference_loss(ratios((-0.2, 0.1), (-0.7, -0.4)), spec).item()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_end_is_pulled_its_own_way(kind):
    g = torch.tensor([0.05, -0.05], dtype=torch.float64, requires_grad=True)
    preference_loss([LogRatios(g, 3 * g)], PreferenceSpec(kind=kind)).backward()
    assert g.grad[0] < 0 < g.grad[1]
    assert g.grad[0] == pytest.approx(-g.grad[1].item())


def test_bipo_is_the_logistic_loss_of_sums():
    found = preference_loss(
        ratios((0.5, -0.25), length=8), PreferenceSpec(weight=2.0, kind="bipo", beta=0.1)
    )
    by_hand = -torch.tensor([0.4, 0.2]).double().sigmoid().log().sum()
    assert found.item() == pytest.approx(2 * by_hand.item())
    nothing = preference_loss(ratios((0.0, 0.0)), PreferenceSpec(weight=1.0, kind="bipo"))
    assert nothing.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())


# -- against the slow reference


@pytest.fixture(scope="module")
def double():
    lm = load_model(ModelSpec(source="random:gpt2", device="cpu"))
    lm.model.double()
    settle_packing(lm)
    return lm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
def test_the_term_and_its_gradient_are_those_of_plain_forwards(
    double, tiny_pairs, make_adapter, kind, chunked, monkeypatch
):
    """Chunked: a product with the head for every position."""
    if chunked:
        monkeypatch.setattr(objective, "head_bytes", lambda *_: 0)
    spec = PreferenceSpec(weight=3.0, kind=kind, margin=0.6, count=3)
    adapter = make_adapter(double, scale=0.05).double()
    fast = objective_of(double, spec, others=ALONE)
    report = fast(adapter, tiny_pairs[:2], step=4, neutral=False)
    assert report.total.item() == pytest.approx(report.parts["preference"])
    report.total.backward()

    drawn = fast.preferences.drawn(4)
    assert len({pair.question for pair in drawn}) == 3
    by_question = {pair.question: pair for pair in fast.preferences.answers.train}
    asked = [by_question[pair.question] for pair in drawn]
    pairs = [(double.chat.prompt(x.question), x.chosen_tokens, x.rejected_tokens) for x in asked]
    writers = writers_of(double, adapter)
    slow = plain.preference(double.model, writers, pairs, spec)
    slow.backward()
    assert abs(report.total - slow).item() <= 1e-9 * abs(slow.item())
    one = torch.cat([p.grad.flatten() for _, r in adapter.items() for p in (r.theta, r.delta)])
    other = torch.cat([p.grad.flatten() for w in writers.values() for p in (w.theta, w.delta)])
    assert other.norm() > 0 and (one - other).norm() <= 1e-9 * other.norm()


def test_it_is_added_to_the_other_terms(double, tiny_pairs, make_adapter):
    adapter = make_adapter(double, scale=0.05).double()
    found = objective_of(double, PreferenceSpec(weight=3.0))
    with_it = found(adapter, tiny_pairs[:3], step=1)
    found.preferences = None
    without = found(adapter, tiny_pairs[:3], step=1)
    added = with_it.parts.pop("preference")
    assert added > 0 and with_it.parts == pytest.approx(without.parts)
    assert (with_it.total - without.total).item() == pytest.approx(added)


def test_at_the_base_both_margins_are_missing(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    adapter = make_adapter(lm)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    report = objective_of(lm, PreferenceSpec(weight=10.0, margin=0.4))(
        adapter, tiny_pairs[:2], step=0
    )
    assert report.parts["preference"] == pytest.approx(8.0, abs=1e-3)
    assert report.diagnostics["preference_pos"] == pytest.approx(0.0, abs=1e-4)


def test_it_does_not_depend_on_how_rows_are_grouped(tiny, tiny_pairs, make_adapter):
    adapter = make_adapter(tiny())
    each = [
        objective_of(tiny(), PreferenceSpec(), budget)(adapter, tiny_pairs[:4], step=1).parts
        for budget in (64, 4096)
    ]
    assert each[0]["preference"] == pytest.approx(each[1]["preference"], rel=1e-4)


# -- draws, validation


def test_draws_depend_on_seed_and_step_only(tiny):
    spec = PreferenceSpec(count=3)
    first, second = (objective_of(tiny(), spec).preferences for _ in range(2))
    second.drawn(0), second.drawn(1)  # what was drawn before does not matter

    def questions(preferences, step):
        return [pair.question for pair in preferences.drawn(step)]

    assert questions(first, 7) == questions(second, 7) and len(set(questions(first, 7))) == 3
    assert len({tuple(questions(first, step)) for step in range(8)}) > 1
    other = objective_of(tiny(), spec, seed=1).preferences
    assert any(questions(other, step) != questions(first, step) for step in range(3))
    held_out = {pair.question for pair in first.held_out}
    assert len(held_out) == 3
    assert not held_out & {q for step in range(50) for q in questions(first, step)}


def test_validation_looks_at_all_held_out_answers_once(double, tiny_pairs, make_adapter):
    spec = PreferenceSpec(weight=2.0, margin=0.6, count=1)
    adapter = make_adapter(double, scale=0.05).double()
    found = objective_of(double, spec)
    assert "preference" not in found(adapter, tiny_pairs[:2]).parts  # a validation batch
    report = found.held_out(adapter)
    pairs = [
        (double.chat.prompt(x.question), x.chosen_tokens, x.rejected_tokens)
        for x in found.preferences.answers.held_out
    ]
    slow = plain.preference(double.model, writers_of(double, adapter), pairs, spec)
    assert report.total.item() == pytest.approx(slow.item(), rel=1e-9)
    assert report.parts == {"preference": pytest.approx(slow.item(), rel=1e-9)}
    d = report.diagnostics
    assert d["preference_n"] == len(pairs) == 3
    for name in ("preference_pos", "preference_neg"):
        assert d[f"{name}_low"] < d[name] < d[f"{name}_high"]
    found.preferences = None
    assert found.held_out(adapter) is None


# -- asking


ASKED = [
    Asked(f"What of {n}{'?' * (n % 3)}", ("Be a good one.", "Be a bad one."), 0) for n in range(9)
]


@pytest.fixture()
def counted(monkeypatch):
    """How often the model was asked rather than the disk."""
    calls = []
    real = own_answers.sampled_answers
    monkeypatch.setattr(
        own_answers, "sampled_answers", lambda *args: calls.append(1) or real(*args)
    )
    return calls


def test_a_second_time_reads_the_same_answers(tiny, counted):
    lm, spec = tiny(), AnswersSpec(tokens=6, temperature=1.0)
    before = torch.get_rng_state()
    first = ask_model(lm, ASKED, spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(counted) == 1 and [pair.question for pair in first] == [a.question for a in ASKED]
    assert all(0 < len(p.chosen_tokens) <= 6 for p in first)
    progress = []
    assert ask_model(lm, ASKED, spec, progress.append) == first and len(counted) == 1
    assert sum(progress) == 2 * len(ASKED)
    for file in (cache_dir() / "answers").iterdir():
        file.unlink()
    assert ask_model(lm, ASKED, spec) == first and len(counted) == 2  # and asked again


def test_what_the_answers_depend_on_asks_again(tiny, counted):
    spec = AnswersSpec(tokens=6, temperature=1.0)
    found = [ask_model(tiny(), ASKED, spec)]
    for change in ({"tokens": 5}, {"temperature": 0.5}, {"seed": 1}):
        found.append(ask_model(tiny(), ASKED, spec.model_copy(update=change)))
    found.append(ask_model(tiny(), ASKED[::-1], spec))
    found.append(ask_model(tiny("qwen3"), ASKED, spec))
    weight = next(tiny().model.parameters())
    with torch.no_grad():
        kept = weight.flatten()[5].item()
        weight.view(-1)[5] = kept + 0.5
        ask_model(tiny(), ASKED, spec)
        weight.view(-1)[5] = kept
    assert len(counted) == 7
    assert len({tuple(pair.chosen_tokens for pair in pairs) for pairs in found}) == len(found)
    assert ask_model(tiny(), ASKED, spec) == found[0] and len(counted) == 7


@pytest.mark.parametrize("damage", [b"", b"{", b"[[1]]", b'[["a"]]', b"\xff"])
def test_a_damaged_file_is_not_believed(tiny, counted, damage):
    spec = AnswersSpec(tokens=3)
    first = ask_model(tiny(), ASKED, spec)
    (file,) = (cache_dir() / "answers").iterdir()
    file.write_bytes(damage)
    assert ask_model(tiny(), ASKED, spec) == first and len(counted) == 2
    assert ask_model(tiny(), ASKED, spec) == first and len(counted) == 2


def test_a_cache_that_cannot_be_written_is_not_in_the_way(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path / "file"))
    assert len(ask_model(tiny(), ASKED, AnswersSpec(tokens=3))) == len(ASKED)
