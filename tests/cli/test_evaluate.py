"""`pasto eval`."""

import math
import shutil

import pytest

from pasto_cli.core.evaluation import base_answers
from pasto_cli.core.evaluation.disturbance import LARGEST_COEFFICIENT
from pasto_cli.core.evaluation.questions import score_answers
from pasto_cli.core.records.evaluation import parse
from pasto_cli.core.report.card import PUBLISHED_SIGN
from tests.support.runs import CANDOUR, PROMPTS, score_every_answer
from tests.support.terminal import OWN, contents, strict


def test_eval_writes_every_row_and_says_that_scores_are_undefined(pasto, project):
    before = contents(project.run / "adapter")
    said = pasto("eval", "--benchmark", "mini-dilemmas", "--limit", 4)
    assert said.code == 0, said.err
    run = parse((project.run / "eval" / "mini-dilemmas.json").read_text())
    strict((project.run / "eval" / "mini-dilemmas.json").read_text())
    kinds = [row.kind for row in run.rows]
    assert (kinds.count("target"), len(kinds) - kinds.count("target")) == (8, 80)
    assert len({row.group for row in run.rows if row.kind == "target"}) == 4
    assert run.coefficients == [-1, 0, 1] and run.partial and run.value == "honesty"
    assert all(set(row.answers) == {"-1", "0", "1"} for row in run.rows)
    assert all(0 <= answer.pmass <= 1 for row in run.rows for answer in row.answers.values())
    assert math.isnan(run.scores.steering_f1.value)
    assert (
        "n = 8 rows of 4 dilemmas, 80 control rows" in said.out
        and "part of the benchmark" in said.out
    )
    assert "Scores are undefined" in said.out and "invalid answers began with" in said.out
    assert "every row:" in said.out
    assert [line.split()[1:4:2] for line in said.out.splitlines() if "arithmetic" in line] == [
        ["arithmetic", "-1"],
        ["arithmetic", "+1"],
    ]
    assert contents(project.run / "adapter") == before


def test_eval_json_at_more_coefficients(pasto, project):
    said = pasto(
        "eval",
        project.run,
        "-b",
        "mini-dilemmas",
        "--limit",
        4,
        "--coeffs=-1,-0.5,0,0.5,1",
        "--json",
    )
    assert said.code == 0, said.err
    strict(said.out)
    run = parse(said.out)
    assert run.coefficients == [-1, -0.5, 0, 0.5, 1]
    assert all(set(row.answers) == {"-1", "-0.5", "0", "0.5", "1"} for row in run.rows)
    written = parse((project.run / "eval" / "mini-dilemmas.json").read_text())
    assert written.rows == run.rows and written.provenance == run.provenance
    # A coefficient's answers do not depend on which others were asked for: at 0 they are the base
    # model's.
    assert run.provenance["base"] == "random:llama" and run.provenance["quantization"] == "none"


def test_eval_of_a_benchmark_file_with_an_adapter_outside_a_run(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    shutil.copytree(project.run / "adapter", project.root / "bare")
    before = contents(project.root)
    said = pasto("eval", "bare", "-b", "own.yaml", "--value", "candour", "--coeffs", "-1,1")
    assert said.code == 0, said.err
    assert "A benchmark of our own: candour, n = 2 rows of 1 dilemmas, 4 control rows" in said.out
    assert (
        "every row:" not in said.out and contents(project.root) == before
    )  # there is no run to write to
    said = pasto("eval", "-b", "own.yaml", "--value", "peace", "--json")
    labels = {row.id: row.labels["peace"] for row in parse(said.out).rows if row.kind == "target"}
    assert labels == {"d1/to_do": -1, "d1/not_to_do": 1}
    assert parse((project.run / "eval" / "own.json").read_text()).value == "peace"


def test_eval_with_the_published_label_sign_says_so(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    said = pasto("eval", *options, "--label-sign", "original")
    assert said.code == 0 and "LABEL SIGN ORIGINAL" in said.out
    (first,) = (project.run / "eval").iterdir()
    assert parse(first.read_text()).label_sign == "original"
    assert parse(pasto("eval", *options, "--json").out).label_sign == "own"
    assert len(list((project.run / "eval").iterdir())) == 2  # neither overwrites the other
    card = pasto("push", "me/dial", "--dry-run").out
    assert card.count("A benchmark of our own") == 2 and card.count(PUBLISHED_SIGN) == 1


def test_eval_compares_with_baselines(pasto, project, monkeypatch):
    asked = []
    monkeypatch.setattr(
        base_answers, "score_answers", lambda *args: asked.append(1) or score_answers(*args)
    )
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    methods = ("prompt", "engineered-prompt", "control-vector", "mean-diff", "random-rotation")
    assert pasto("eval", *options).code == 0
    said = pasto("eval", *options, *(x for name in methods for x in ("--baseline", name)))
    assert said.code == 0, said.err
    assert all(
        name.split("-")[0] in said.out for name in ("adapter", *methods)
    )  # a long name may be folded
    assert "n = 2 rows of 1 dilemmas" in said.out
    runs = [parse(path.read_text()) for path in (project.run / "eval").iterdir()]
    assert {run.provenance.get("method") for run in runs} == {None, "adapter", *methods}
    rows = {row.id: row.answers["0"].y for row in runs[0].rows}
    for run in runs:  # every method is the base model at 0, which is asked in a pass of its own
        assert {row.id: row.answers["0"].y for row in run.rows} == rows
    assert len(asked) == 2  # once a command, since this base has no name to keep answers under


def test_card_lists_what_was_measured_once(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    assert pasto("eval", *options).code == pasto("eval", *options, "--baseline", "prompt").code == 0
    assert pasto("push", "me/dial", "--dry-run").out.count("A benchmark of our own") == 1


def test_eval_at_equal_disturbance(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    said = pasto(
        "eval",
        "-b",
        "own.yaml",
        "--value",
        "candour",
        "--baseline",
        "mean-diff",
        "--equal-kl",
        "--json",
    )
    assert said.code == 0, said.err
    found = strict(said.out)
    assert [record["method"] for record in found] == ["adapter", "mean-diff"]
    for record in found:
        assert set(record) == {"method", "coefficients", "scores", "disturbance"}
        for own, coefficient in zip(record["coefficients"], ("1", "-1"), strict=True):
            kl = record["disturbance"][coefficient]["kl_p95"]["value"]
            if own == LARGEST_COEFFICIENT:  # what cannot be reached is said
                assert (
                    kl < 1 and f"warning: {record['method']}: no coefficient up to 1024" in said.err
                )
            else:
                assert own > 0 and kl == pytest.approx(1, abs=0.1)


def test_eval_oracles_need_no_model(pasto, tmp_path):
    said = pasto("eval", "--oracles", "--json")
    found = strict(said.out)
    assert said.code == 0 and (found["benchmark"], found["value"], found["label_sign"]) == (
        "mini-dilemmas",
        "honesty",
        "own",
    )
    scores = {oracle["name"]: oracle for oracle in found["oracles"]}
    assert {"perfect", "inverted", "yes-sayer", "no-op"} <= set(scores)
    assert all(s["f1"]["low"] <= s["f1"]["value"] <= s["f1"]["high"] for s in scores.values())
    assert max(scores, key=lambda name: scores[name]["f1"]["value"]) == "perfect"
    assert scores["inverted"]["f1"]["value"] == scores["no-op"]["f1"]["value"] == 0
    said = pasto("eval", "--oracles", "--label-sign", "original")
    assert "LABEL SIGN ORIGINAL" in said.out and f"n = {found['rows']} labelled rows" in said.out
    assert all(name in said.out for name in scores)
    assert list(tmp_path.iterdir()) == []


def test_eval_prints_a_long_path_whole(pasto, project):
    (project.root / "own.yaml").write_text(OWN.replace("name: own", f"name: own-{'x' * 60}"))
    assert f"own-{'x' * 60}.json\n" in pasto("eval", "-b", "own.yaml", "--value", "candour").out


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (("--limit", "3"), "--limit"),
        (("--coeffs", "-1,0,1"), "--coeffs"),
        (("--baseline", "prompt"), "--baseline"),
        (("--equal-kl",), "--equal-kl"),
        (("runs/latest",), "an adapter"),
        (("--quantization", "4bit"), "--quantization"),
        (("--no-verify",), "--no-verify"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_oracles_pass_over_no_option(pasto, project, option, name):
    said = pasto("eval", "--oracles", *option)
    assert (said.code, said.out) == (1, "")
    assert said.error == f"error: {name} does not go with --oracles" and "Leave" in said.next_step


def test_oracles_on_sentiment_are_refused(pasto, tmp_path):
    said = pasto("eval", "--oracles", "-b", "sentiment")
    assert (
        (said.code, said.out) == (1, "") and "sentiment has none" in said.error and said.next_step
    )


def test_a_comparison_of_several_adapters_shares_its_baselines(pasto, project, other):
    (project.root / "own.yaml").write_text(OWN)
    names = ("prompt", "mean-diff")
    asked = [word for name in names for word in ("--baseline", name)]
    given = (project.run, other, *CANDOUR, *asked, "--no-verify")
    said = pasto("eval", *given, "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    first, second = found["runs"]
    order = ["adapter", *names]
    assert [m["method"] for m in first] == [m["method"] for m in second] == order
    # The same baselines, measured once; what is minus the adapter's is minus each adapter's own.
    assert said.err.count("building baselines") == 1
    for one, two in zip(first[1:], second[1:], strict=True):
        assert one["scores"]["slope"] == two["scores"]["slope"]
    assert found["across"]["selectivity"]["values"] == [
        methods[0]["scores"]["selectivity"]["value"] for methods in (first, second)
    ]
    said = pasto("eval", *given)
    assert said.out.count("slope, nats [95 %]") == 2 and "selectivity" in said.out


def test_eval_measures_what_the_dial_disturbs(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    said = pasto("eval", *CANDOUR, "--coeffs=-1,-0.5,0,1")
    assert said.code == 0, said.err
    run = parse((project.run / "eval" / "own.json").read_text())
    assert list(run.disturbance) == ["-1", "-0.5", "0", "1"]
    assert run.disturbance["0"].kl_p95.value == run.disturbance["0"].nll_shift.value == 0
    kl = {a: found.kl_p95 for a, found in run.disturbance.items()}
    assert 0 < kl["-0.5"].value < kl["-1"].value and kl["1"].value > 0  # half the way disturbs less
    assert all(e.low <= e.value <= e.high and e.clusters == PROMPTS for e in kl.values())
    shift = run.disturbance["1"].nll.value - run.disturbance["0"].nll.value
    assert run.disturbance["1"].nll_shift.value == pytest.approx(shift, abs=1e-9)
    assert f"on {PROMPTS} neutral prompts" in said.out and f"{kl['1'].value:.2f} [" in said.out


def test_eval_twice_gives_the_same_rows_and_scores(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    score_every_answer(project.run)
    first, second = (strict(pasto("eval", *CANDOUR, "--json").out) for _ in range(2))
    for part in ("rows", "scores", "disturbance"):
        assert first[part] == second[part]
    assert first["scores"]["slope"]["value"] is not None  # there was something to compare


def test_another_run_may_be_a_baseline(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    twin = project.root / "runs" / "twin"
    shutil.copytree(project.run, twin)
    said = pasto("eval", *CANDOUR, "--baseline", twin, "--json")
    assert said.code == 0, said.err
    own, other = strict(said.out)
    assert other["method"] == str(twin)
    assert own["scores"]["coefficients"] == other["scores"]["coefficients"]
    wrong = pasto("eval", *CANDOUR, "--baseline", "runs/none")
    assert wrong.code == 1 and "folder of another run" in wrong.next_step
