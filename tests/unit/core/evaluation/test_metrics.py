"""Figures of an evaluation: oracles on real item structures, edges, intervals."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.statistics import cluster_bootstrap, spread
from pasto_cli.core.evaluation.benchmarks import load_benchmark, subset
from pasto_cli.core.evaluation.details import invalid_top_tokens
from pasto_cli.core.evaluation.metrics import Ends, Table, steering_f1
from pasto_cli.core.evaluation.oracles import ORACLES, oracle_tables, score_oracles, simulate
from pasto_cli.core.evaluation.scores import scores, slope_difference
from pasto_cli.core.records.evaluation import Answer, dump, parse
from pasto_cli.core.records.scores import key
from tests.support.evaluations import evaluation_of
from tests.support.examples import examples

C = (-1.0, 0.0, 1.0)


@pytest.fixture(scope="module", params=["mini-dilemmas", "dailydilemmas"])
def items(request):
    data = (
        str(request.getfixturevalue("dailydilemmas")) if request.param == "dailydilemmas" else None
    )
    return load_benchmark(request.param, data).items


def f1(items, oracle, value="honesty", seeds=(0,), **options):
    """Mean over seeds."""
    tables = oracle_tables(items, value, oracle, seeds, **options)
    return np.mean([table.f1(table.every).f1 for table in tables])


@pytest.mark.parametrize("label_sign", ["own", "original"])
def test_tables_of_many_seeds_are_those_of_the_rows(items, label_sign):
    some = items[::9]
    for oracle in ORACLES:
        tables = oracle_tables(some, "honesty", oracle, (3, 4), label_sign)
        for seed, table in zip((3, 4), tables, strict=True):
            rows = simulate(some, "honesty", oracle, seed)
            own = Table(rows, "honesty", C, 0.05, label_sign=label_sign)
            assert own.groups == table.groups and (own.label == table.label).all()
            for c in C:
                assert (own.score(c, own.every) == table.score(c, table.every)).all()
            assert own.f1(own.every) == table.f1(table.every)


def test_the_metric_ranks_simulated_steerers_as_a_person_would(items):
    assert f1(items, "perfect") > 40
    assert f1(items, "inverted") == 0 == f1(items, "no-op")


def test_chance_earns_under_two(items):
    """Over 200 draws; net is clamped at 0, so that chance earns something, less the more dilemmas
    there are."""
    carrying = [i for i in items if "honesty" in i.labels or i.kind != "target"]
    for oracle in ("yes-sayer", "no-sayer", "random"):
        assert f1(carrying, oracle, seeds=range(200)) < 2, oracle
    assert score_oracles(items, "honesty", draws=1)[-1].f1.low == 0  # random's interval reaches 0


def test_the_published_sign_rewards_a_yes_sayer(dailydilemmas):
    """The fault that --label-sign original reproduces: a yes-sayer beats a perfect steerer."""
    items = load_benchmark("dailydilemmas", str(dailydilemmas)).items
    assert f1(items, "yes-sayer", label_sign="original") > 3 * f1(
        items, "perfect", label_sign="original"
    )


def test_acquiescence_sees_the_yes_sayer(items):
    table = Table(simulate(items, "honesty", "yes-sayer", 0), "honesty", C, 0.05)
    every = np.arange(len(table.rows))
    assert table.acquiescence(1.0, every) == pytest.approx(3.0)
    assert abs(table.shift(1.0, every)) < 0.5
    perfect = Table(simulate(items, "honesty", "perfect", 0), "honesty", C, 0.05)
    assert (
        perfect.shift(1.0, every) == pytest.approx(3.0)
        and abs(perfect.acquiescence(1.0, every)) < 0.5
    )


def test_informedness_ranks_too(items):
    si = {o: Table(simulate(items, "honesty", o, 0), "honesty", C, 0.05) for o in ORACLES}
    values = {o: t.informedness(np.arange(len(t.rows))) for o, t in si.items()}
    assert values["perfect"] > 80 and values["inverted"] < 0 and values["no-op"] == 0
    assert values["yes-sayer"] < 0


def test_invalid_answers_are_counted_and_never_replaced(items):
    rows = simulate(items, "honesty", "perfect", 0)
    for row in rows[::2]:
        row.answers["1"].pmass = 0.01
    table = Table(rows, "honesty", C, 0.05)
    every = np.arange(len(table.rows))
    whole = Table(simulate(items, "honesty", "perfect", 0), "honesty", C, 0.05)
    assert (~table.valid[1.0]).sum() == pytest.approx(len(table.rows) / 2, abs=2)
    assert table.f1(every).f1 < 0.8 * whole.f1(every).f1
    assert (
        table.f1(every).arbitrary > whole.f1(every).arbitrary
    )  # an invalid control answer is a flip
    assert scores(table).at(1.0).invalid == (~table.valid[1.0]).sum()


def test_scores_carry_n_and_intervals(items):
    rows = simulate(items, "honesty", "perfect", 0)
    s = scores(Table(rows, "honesty", C, 0.05))
    e = s.steering_f1
    assert e.low < e.value < e.high and e.n == s.n_target + s.n_control
    shift = s.at(1.0).shift
    assert shift.clusters * 2 == shift.n == s.n_target
    run = evaluation_of(rows, C)
    assert parse(dump(run)).model_dump() == run.model_dump()


def test_undefined_is_nan_never_zero():
    nothing, one = Ends(*[np.array([])] * 3), Ends(*[np.array([1.0])] * 3)
    mass = Ends(1.0, 1.0, 1.0)
    result = steering_f1(nothing, nothing, mass)
    assert math.isnan(result.f1) and math.isnan(result.correct_rate)
    assert math.isnan(steering_f1(one, nothing, mass).f1)  # no controls: no precision
    assert math.isnan(steering_f1(one, one, Ends(0.01, 1.0, 1.0)).f1)


def test_pmass_ratio_is_clamped_unless_original():
    y = Ends(np.array([-1.0, -1.0]), np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    control = Ends(*[np.ones(2)] * 3)
    assert steering_f1(y, control, Ends(1.0, 0.5, 1.0)).f1 == pytest.approx(100)
    assert steering_f1(y, control, Ends(1.0, 0.5, 1.0), "original").f1 == pytest.approx(400)
    assert steering_f1(y, control, Ends(0.5, 1.0, 1.0)).f1 == pytest.approx(25)


@examples(50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(0, 99))
def test_f1_is_between_0_and_100(y, seed):
    rng = np.random.default_rng(seed)
    arrays = Ends(*(np.array(y) + rng.normal(0, 2, len(y)) * k for k in (1, 0, 1)))
    result = steering_f1(arrays, arrays, Ends(0.9, 1.0, 0.8))
    assert 0 <= result.f1 <= 100 and result.recall <= 1 and result.arbitrary <= 1 + 1e-9


def test_bootstrap_resamples_whole_clusters_and_is_seeded():
    """Ten clusters of five equal rows: as wide as ten rows, not as fifty."""
    rng = np.random.default_rng(0)
    centre = rng.normal(0, 1, 10)
    x = np.repeat(centre, 5)
    names = np.repeat([f"g{i}" for i in range(10)], 5).tolist()
    clustered = cluster_bootstrap(lambda i: x[i].mean(), names)
    single = cluster_bootstrap(lambda i: centre[i].mean(), [f"g{i}" for i in range(10)])
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.1)
    assert (clustered.n, clustered.clusters) == (50, 10)
    assert clustered == cluster_bootstrap(lambda i: x[i].mean(), names)
    assert clustered != cluster_bootstrap(lambda i: x[i].mean(), names, seed=1)


def test_bootstrap_at_the_edges():
    nothing = cluster_bootstrap(lambda i: 1.0, [])
    assert math.isnan(nothing.value) and nothing.n == 0
    one = cluster_bootstrap(lambda i: 2.0, ["a", "a"])
    assert one.value == 2.0 and math.isnan(one.low)


@pytest.mark.slow
def test_interval_covers_the_truth():
    """Nominal 95 % intervals cover the true shift in 92 to 98 % of 500 simulated benchmarks of 100
    dilemmas.

    Each dilemma's two rows share a part of their shift, so that intervals over rows would be too
    narrow."""
    hits = rows_hit = 0
    truth = 0.3
    for seed in range(500):
        rng = np.random.default_rng(seed)
        shared = np.repeat(rng.normal(truth, 1.0, 100), 2)
        x = shared + rng.normal(0, 0.5, 200)
        names = np.repeat(np.arange(100), 2).astype(str).tolist()
        e = cluster_bootstrap(lambda i, x=x: x[i].mean(), names, seed, draws=500)
        hits += e.low <= truth <= e.high
        half = 1.96 * x.std(ddof=1) / len(x) ** 0.5
        rows_hit += abs(x.mean() - truth) <= half
    assert 0.92 <= hits / 500 <= 0.98
    assert rows_hit / 500 < 0.92  # what the clusters are for


def test_slope_and_monotonicity():
    items = load_benchmark("mini-dilemmas").items
    five = (-1.0, -0.5, 0.0, 0.5, 1.0)

    def table(rule):
        rows = simulate(items, "honesty", "no-op", 0)
        for row in rows:
            base = row.answers["0"].y
            label = row.labels.get("honesty", 0)
            row.answers.update(
                {key(a): Answer(y=base + rule(a) * label, pmass=1.0, said="") for a in five}
            )
        return Table(rows, "honesty", five, 0.05)

    every = np.arange(len(table(abs).rows))
    line = table(lambda a: 0.7 * a)
    assert line.slope(every) == pytest.approx(0.7) and line.monotonicity(every) == pytest.approx(1)
    assert table(lambda a: -0.2 * a).monotonicity(every) == pytest.approx(-1)
    valley = table(lambda a: a * a)
    assert (
        valley.slope(every) == pytest.approx(0, abs=1e-9) and abs(valley.monotonicity(every)) < 0.1
    )
    flat = table(lambda a: 0.0)
    assert flat.slope(every) == pytest.approx(0) and math.isnan(flat.monotonicity(every))
    found = scores(line)
    assert found.slope.low == pytest.approx(0.7) == found.slope.high


def test_slope_leaves_rows_out_that_are_invalid_anywhere():
    rows = simulate(load_benchmark("mini-dilemmas").items, "honesty", "perfect", 0)
    for row in rows[::2]:
        row.answers["1"] = Answer(y=-100.0, pmass=0.01, top_token="x")
    table = Table(rows, "honesty", C, 0.05)
    assert table.slope(np.arange(len(table.rows))) == pytest.approx(3.0)


def test_chance_is_what_shuffled_labels_earn(items):
    """A perfect steerer beats its own shuffles; one that only says Yes does not; labels are left as
    they were."""
    perfect, yes = (
        Table(simulate(items, "honesty", o, 1), "honesty", C, 0.05)
        for o in ("perfect", "yes-sayer")
    )
    before = perfect.label.copy()
    found = perfect.chance(200)
    assert np.array_equal(before, perfect.label)
    assert found.p < 0.01 and found.p95 < 20 and found.mean < 6
    assert yes.chance(200).p > 0.05
    assert perfect.chance(50, seed=3) == perfect.chance(50, seed=3)


def test_difference_of_two_methods_is_paired():
    """Base answers vary by nats between dilemmas; what two methods do to the same dilemmas differs
    by far less."""
    items = load_benchmark("mini-dilemmas").items
    one, other = (
        Table(simulate(items, "honesty", o, 0), "honesty", C, 0.05) for o in ("perfect", "no-op")
    )
    found = slope_difference(one, other)
    assert (
        found.value == pytest.approx(3.0)
        and found.high - found.low < 1e-9
        and found.clusters == 228
    )
    noisy = Table(simulate(items, "honesty", "random", 0), "honesty", C, 0.05)
    there, back = slope_difference(noisy, other), slope_difference(other, noisy)
    assert there.value == pytest.approx(-back.value) and there.low == pytest.approx(-back.high)
    with pytest.raises(ValueError, match="same questions"):
        slope_difference(one, Table(simulate(items[2:], "honesty", "no-op", 0), "honesty", C, 0.05))


def test_invalid_top_tokens_count_what_was_said_instead():
    rows = simulate(load_benchmark("mini-dilemmas").items[:6], "honesty", "no-op", 0)
    for n, row in enumerate(rows):
        row.answers["1"] = Answer(y=0.0, pmass=0.01, top_token="Maybe" if n < 4 else "I")
    assert invalid_top_tokens(rows, 0.05) == [("Maybe", 4), ("I", 2)]


def test_spread_over_runs():
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n, found.agree) == (2.0, 1.0, 3, 3)
    assert found.low == pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3) and found.high == pytest.approx(
        4 - found.low
    )
    mixed = spread([-1.0, 3.0])
    assert mixed.agree == 1
    assert math.isnan(spread([1.0]).sd)


def test_subset_keeps_whole_dilemmas_and_all_controls(items):
    class Holder:
        pass

    from pasto_cli.core.evaluation.benchmarks import Benchmark

    whole = Benchmark("b", "t", "l", "s", "p", items)
    part = subset(whole, "honesty", 10, 0)
    groups = {i.group for i in part.items if i.kind == "target"}
    assert len(groups) == 10 and part.partial
    assert sum(i.kind == "target" for i in part.items) == 20
    assert (
        sum(i.kind != "target" for i in part.items) == sum(i.kind != "target" for i in items) == 80
    )
    assert all("honesty" in i.labels for i in part.items if i.kind == "target")
    assert subset(whole, "honesty", None, 0) is whole
    assert (
        part.items == subset(whole, "honesty", 10, 0).items != subset(whole, "honesty", 10, 1).items
    )


def test_every_frequent_value_ranks_the_oracles(items):
    """For each value with at least 100 labelled rows: perfect far above all, inverted and no-op
    nothing, Yes and No little.

    What chance earns falls with the square root of the dilemmas: under 2 on 200 of them, under 5 on
    the 50 of the rarest."""
    seeds = dict.fromkeys(ORACLES, 5) | {"yes-sayer": 25, "no-sayer": 25, "random": 25}
    counts = Counter(v for i in items for v in i.labels if ": " not in v)
    values = [v for v, n in counts.items() if n >= 100]
    assert len(values) >= 9
    for value in values:
        carrying = [i for i in items if value in i.labels or i.kind != "target"]
        got = {o: f1(carrying, o, value, range(n)) for o, n in seeds.items()}
        rest = max(score for o, score in got.items() if o != "perfect")
        assert got["perfect"] > 50 and got["perfect"] > 10 * rest, (value, got)
        assert got["inverted"] == 0 == got["no-op"], (value, got)
        assert rest < 5 * (100 / counts[value]) ** 0.5 + 0.5, (value, counts[value], got)


def test_oracle_table_carries_intervals():
    table = {
        s.name: s for s in score_oracles(load_benchmark("mini-dilemmas").items, "honesty", draws=3)
    }
    assert set(table) == set(ORACLES)
    assert table["perfect"].f1.low > 20 and table["random"].f1.low == 0
    assert table["yes-sayer"].acquiescence == pytest.approx(3.0) and table[
        "perfect"
    ].shift == pytest.approx(3.0)
