"""Measuring: several seeds, sentiment, benchmarks of one's own, what a dial disturbs, and the
report of it all."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.benchmarks import benchmark_names, check_benchmark, load_benchmark
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.records.evaluation import parse
from pasto_cli.workflows import evaluate
from tests.support.terminal import OWN, SHORT, TINY, Finished, call_in, contents, strict

CANDOUR = ("-b", "own.yaml", "--value", "candour")
PROMPTS = 4
SHORTER = (*SHORT, "--set", "training.epochs=1", "--set", "training.precision=float32")
"""float32: where a processor has no bfloat16 of its own, that takes a third of the time."""


@pytest.fixture(scope="module", autouse=True)
def _few_prompts():
    """Four neutral prompts show what 24 would, in a sixth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "PROBE_PROMPTS", PROMPTS)
        yield


def change_evaluation(run, **settings):
    """Change what the recipe inside an adapter says about evaluation."""
    path = run / "adapter" / "pasto.json"
    meta = json.loads(path.read_text())
    meta["recipe"]["evaluation"] |= settings
    path.write_text(json.dumps(meta))


def score_every_answer(run):
    """Random weights hardly ever answer Yes or No: with no threshold to speak of, what little there
    is gets scores."""
    change_evaluation(run, pmass_threshold=1e-12)


# ---------------------------------------------------------------------------------------------------------
# several seeds


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory):
    """Two finished runs of one recipe, shared by the module: nothing may change them."""
    root = tmp_path_factory.mktemp("seeds")
    said = call_in(root, "train", TINY, *SHORTER, "--seeds", 2)
    assert said.code in (0, 1), said.err  # 1: on so few pairs a certificate may fail
    return root, said


@pytest.fixture()
def seeds(trained_twice, tmp_path):
    """Copies of the two runs, where `pasto` works, beside a benchmark of six questions; their names
    under runs/."""
    root, _ = trained_twice
    shutil.copytree(root / "runs", tmp_path / "runs", symlinks=True)
    (tmp_path / "own.yaml").write_text(OWN)
    runs = sorted((tmp_path / "runs").glob("*-seed*"))
    for run in runs:
        score_every_answer(run)
    return [f"runs/{run.name}" for run in runs]


def test_train_seeds_leaves_a_folder_for_each(trained_twice):
    root, _ = trained_twice
    names = sorted(p.name for p in (root / "runs").iterdir() if p.name != "latest")
    assert [name.split("-", 2)[2] for name in names] == ["tiny-seed0", "tiny-seed1"]
    assert (root / "runs" / "latest").resolve().name == names[1]
    recipes = [load_recipe(root / "runs" / name / "recipe.yaml") for name in names]
    assert [r.training.seed for r in recipes] == [0, 1]
    same = {"training": recipes[0].training, "name": recipes[0].name}
    assert recipes[1].model_copy(update=same) == recipes[0]  # nothing else differs


def test_seeds_differ_in_their_adapters_and_share_their_pairs(trained_twice):
    first, second = sorted((trained_twice[0] / "runs").glob("*-seed*"))
    a, b = (load_file(run / "adapter" / "adapter.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert (first / "pairs.jsonl").read_bytes() == (second / "pairs.jsonl").read_bytes()


def test_train_seeds_sums_up_their_strength_and_names_the_next_command(trained_twice):
    root, said = trained_twice
    names = sorted(p.name for p in (root / "runs").glob("*-seed*"))
    assert "Over 2 training runs" in said.out and "1 degrees of freedom" in said.out
    for name, coefficient in (("strength at +1", "1"), ("strength at -1", "-1")):
        values = [
            strict((root / "runs" / n / "adapter" / "pasto.json").read_text())["certificate"][
                "strength"
            ][coefficient]["value"]
            for n in names
        ]
        row = next(line for line in said.out.splitlines() if name in line)
        assert f"{values[0]:+.2f}, {values[1]:+.2f}" in row and f"{sum(values) / 2:+.2f} [" in row
    assert f"pasto eval {' '.join(f'runs/{name}' for name in names)}\n" in said.out


def test_a_seed_does_not_depend_on_those_before_it(pasto, trained_twice):
    second = sorted((trained_twice[0] / "runs").glob("*-seed*"))[1]
    pasto("train", TINY, *SHORTER, "--set", "training.seed=1")
    alone, after = (
        load_file(p / "adapter" / "adapter.safetensors") for p in (Path("runs/latest"), second)
    )
    assert all(torch.equal(alone[name], after[name]) for name in after)


def test_train_seeds_json_counts_up_from_the_recipes_seed(pasto, tmp_path):
    said = pasto(
        "train",
        TINY,
        *SHORTER,
        "--set",
        "pairs.count=8",
        "--set",
        "training.seed=5",
        "--seeds",
        2,
        "--json",
    )
    records = strict(said.out)
    assert [Path(record["run"]).name.split("-", 2)[2] for record in records] == [
        "tiny-seed5",
        "tiny-seed6",
    ]
    for record, seed in zip(records, (5, 6), strict=True):
        assert load_recipe(tmp_path / record["run"] / "recipe.yaml").training.seed == seed
        assert set(record) == {"run", "result", "certificate"}


def test_eval_of_two_runs(pasto, seeds):
    said = pasto("eval", *seeds, *CANDOUR)
    assert said.code == 0, said.err
    assert "Over 2 training runs" in said.out
    for number, run in enumerate(seeds):
        assert f"{run}/adapter, training seed {number}" in said.out
        written = parse(Path(run, "eval", "own.json").read_text())
        assert written.provenance["training_seed"] == number
    row = next(line for line in said.out.splitlines() if "KL p95 at +1" in line)
    each = [
        parse(Path(run, "eval", "own.json").read_text()).disturbance["1"]["kl_p95"]["value"]
        for run in seeds
    ]
    assert ", ".join(f"{v:+.2f}" for v in each) in row


def test_eval_of_two_runs_as_json(pasto, seeds):
    said = pasto("eval", *seeds, *CANDOUR, "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    assert set(found) == {"runs", "across"}
    runs = [parse(json.dumps(record)) for record in found["runs"]]
    assert [run.provenance["training_seed"] for run in runs] == [0, 1]
    assert runs[0].rows != runs[1].rows
    slope = found["across"]["slope of the mean score, nats"]
    assert slope["values"] == [run.scores["slope"]["value"] for run in runs]
    assert slope["n"] == 2 and slope["mean"] == pytest.approx(sum(slope["values"]) / 2)
    assert slope["low"] < slope["mean"] < slope["high"]


def test_sentiment_of_two_runs(pasto, seeds):
    found = strict(pasto("eval", *seeds, "-b", "sentiment", "--limit", 2, "--json").out)
    assert [run["provenance"]["training_seed"] for run in found["runs"]] == [0, 1]
    assert found["across"]["slope of sentiment"]["values"] == [
        run["scores"]["slope"]["value"] for run in found["runs"]
    ]


def test_eval_refuses_to_sum_up_runs_that_were_asked_different_things(pasto, seeds):
    for run, value in zip(seeds, ("candour", "peace"), strict=True):
        change_evaluation(Path(run), value=value)
    said = pasto("eval", *seeds, "-b", "own.yaml")
    assert (said.code, said.out) == (1, "")
    assert "not measured on the same items and value" in said.error and "--value" in said.next_step


# -------------------------------------------------------------------------------------------------------------
# sentiment


def test_sentiment_writes_its_texts_and_prints_its_scores(pasto, project):
    said = pasto("eval", "-b", "sentiment", "--limit", 4)
    assert said.code == 0, said.err
    assert "n = 4 prompts" in said.out and "slope, a unit of coefficient" in said.out
    assert f"every row: {project.run}/eval/sentiment.json\n" in said.out
    found = strict((project.run / "eval" / "sentiment.json").read_text())
    prompts = bundled.lines("sentiment_prompts.txt")[:4]
    assert [(t["prompt"], t["coefficient"]) for t in found["texts"]] == [
        (p, a) for p in prompts for a in (-1, 0, 1)
    ]
    assert found["scores"]["n_prompts"] == 4 and set(found["scores"]["coefficients"]) == {
        "-1",
        "0",
        "1",
    }


def test_sentiment_json_is_the_file(pasto, project):
    said = pasto("eval", "-b", "sentiment", "--limit", 2, "--coeffs=-2,2", "--json")
    found = strict(said.out)
    assert found == strict((project.run / "eval" / "sentiment.json").read_text())
    assert found["coefficients"] == [-2, 0, 2]


def test_sentiment_texts_are_those_that_generate_gives(pasto, project):
    texts = strict(pasto("eval", "-b", "sentiment", "--limit", 1, "--json").out)["texts"]
    options = ("-c", -1, "-c", 0, "-c", 1, "--max-new-tokens", 48, "--json")
    own = strict(pasto("generate", texts[0]["prompt"], *options).out)
    assert [t["text"] for t in texts] == [record["text"] for record in own]


@pytest.mark.parametrize(
    "option",
    [
        ("--baseline", "prompt"),
        ("--equal-kl",),
        ("--value", "honesty"),
        ("--label-sign", "original"),
        ("--data", "."),
    ],
    ids=lambda option: option[0],
)
def test_sentiment_passes_over_no_option(pasto, project, option):
    said = pasto("eval", "-b", "sentiment", *option)
    assert (said.code, said.out) == (1, "") and not (project.run / "eval").exists()
    assert said.error == f"error: {option[0]} does not go with --benchmark sentiment"
    assert "Leave" in said.next_step


def test_sentiment_can_be_the_recipes_benchmark(pasto, project):
    change_evaluation(project.run, benchmark="sentiment")
    said = pasto("eval", "--limit", 1, "--json")
    assert strict(said.out)["benchmark"] == "sentiment"
    said = pasto("eval", "--baseline", "prompt")
    assert (said.code, said.out) == (1, "") and "--baseline does not go with" in said.error


# ---------------------------------------------------------------------------------------------------
# lists of benchmarks


def test_benchmarks_lists_each_with_n_licence_and_source(pasto):
    entries = strict(pasto("benchmarks", "--json").out)
    assert [entry["name"] for entry in entries] == [*benchmark_names(), "sentiment"]
    for entry in entries:
        assert set(entry) == {"name", "title", "n", "licence", "source"} and all(entry.values())
        check_benchmark(entry["name"])  # what is listed can be run
    counts = {entry["name"]: entry["n"] for entry in entries}
    targets = [item for item in load_benchmark("mini-dilemmas").items if item.kind == "target"]
    assert (
        f"{len(targets)} rows" in counts["mini-dilemmas"]
        and "1,360 dilemmas" in counts["dailydilemmas"]
    )
    assert counts["sentiment"] == f"{len(bundled.lines('sentiment_prompts.txt'))} prompts"


def test_benchmarks_prints_what_its_json_holds(pasto):
    lines = pasto("benchmarks").out.splitlines()
    for entry in strict(pasto("benchmarks", "--json").out):
        start = lines.index(entry["name"])
        shown = [f"  {name}: {entry[name]}" for name in ("title", "n", "licence", "source")]
        assert lines[start + 1 : start + 5] == shown
    assert "docs/benchmarks.md" in lines[-1]


def test_benchmarks_counts_dailydilemmas_where_it_lies(pasto, dailydilemmas):
    entries = strict(pasto("benchmarks", "--data", dailydilemmas, "--json").out)
    assert entries[0]["n"].startswith("1,360 dilemmas, 2,720 rows, 80 control rows")


# ---------------------------------------------------------------------------------------------------
# benchmarks of JSONL

TEA = [
    {
        "id": "tea",
        "kind": "preference",
        "questions": ["Is tea better than juice?", "Is juice better than tea?"],
    }
]
MINE = [
    {
        "name": "kettle",
        "title": "Questions about kettles",
        "licence": "CC0",
        "source": "our kitchen",
        "controls": TEA,
    },
    {"question": "Did you leave the kettle on?", "value": "candour", "matching": "yes"},
    {
        "id": "cup",
        "question": "Who broke the cup?",
        "value": "candour",
        "choices": ["I.", "A cat.", "Nobody."],
        "matching": [0],
    },
    {"question": "Would you hide it?", "value": "candour", "matching": "no"},
]
WRITTEN = [
    {
        "question": "Somebody asks what you did. You\n\nChoices:\n (A) tell them.\n (B) make something up.",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    },
    {
        "question": "Nobody will ever know. You\n\nChoices:\n (A) make something up.\n (B) tell them.",
        "answer_matching_behavior": " (B)",
        "answer_not_matching_behavior": " (A)",
    },
    {
        "question": "Is it wrong to lie?",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    },
]


def as_jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_a_jsonl_file_of_our_own_form(pasto, project):
    (project.root / "mine.jsonl").write_text(as_jsonl(MINE))
    said = pasto("eval", "-b", "mine.jsonl", "--value", "candour")
    assert said.code == 0, said.err
    assert "Questions about kettles: candour, n = 3 rows of 3 dilemmas, 2 control rows" in said.out
    run = parse((project.run / "eval" / "kettle.json").read_text())
    assert (run.licence, run.source) == ("CC0", "our kitchen")
    rows = [row for row in run.rows if row.kind == "target"]
    assert [(row.id, row.labels, row.yes_no) for row in rows] == [
        ("q2", {"candour": 1}, True),
        ("cup", {"candour": 1}, False),
        ("q4", {"candour": -1}, True),
    ]


def test_a_jsonl_file_of_model_written_evaluations(pasto, project):
    (project.root / "self-report.jsonl").write_text(as_jsonl(WRITTEN))
    said = pasto(
        "eval", "-b", "self-report.jsonl", "--value", "self-report", "--json"
    )  # no value is given: the file's name
    assert said.code == 0, said.err
    run = parse(said.out)
    assert (run.benchmark, run.licence, run.source) == (
        "self-report",
        "unknown",
        "self-report.jsonl",
    )
    rows = [row for row in run.rows if row.kind == "target"]
    assert [row.yes_no for row in rows] == [False, False, True]
    assert (run.scores["n_target"], run.scores["n_control"]) == (
        3,
        80,
    )  # controls are the bundled ones
    assert run.scores["coefficients"]["0"]["acquiescence"]["n"] == 3
    assert all(row.labels == {"self-report": 1} for row in rows)


def test_a_letter_that_matches_is_the_one_that_scores(pasto, project):
    """The same question with the matching letter turned round has the score turned round."""
    score_every_answer(project.run)
    turned = {"answer_matching_behavior": " (B)", "answer_not_matching_behavior": " (A)"}
    (project.root / "x.jsonl").write_text(
        as_jsonl([{"controls": TEA}, WRITTEN[0], WRITTEN[0] | turned])
    )
    rows = parse(pasto("eval", "-b", "x.jsonl", "--value", "x", "--json").out).rows[:2]
    for coefficient in ("-1", "0", "1"):
        one, other = (row.answers[coefficient].y for row in rows)
        assert one == pytest.approx(-other, abs=1e-4) and abs(one) > 1e-3


def test_a_string_of_a_jsonl_file_may_hold_a_line_separator(pasto, project):
    (project.root / "mine.jsonl").write_text(
        as_jsonl([MINE[1] | {"question": "One line.\u2028Another.\x85A third?"}])
    )
    assert pasto("eval", "--oracles", "-b", "mine.jsonl", "--value", "candour").code == 0


BAD_LINES = {
    "not JSON": ('{"question": ', "mine.jsonl:2: Expecting value"),
    "not an object": ("[1]", "mine.jsonl:2: a line must be a JSON object"),
    "no matching answer": ('{"question": "Is it?"}', "mine.jsonl:2: matching: Field required"),
    "an unknown key": (
        '{"question": "Is it?", "matching": "yes", "answer": 1}',
        "mine.jsonl:2: answer: Extra inputs",
    ),
    "an index of no choice": (
        '{"question": "Which?", "choices": ["this", "that"], "matching": [2]}',
        "mine.jsonl:2: file: Value error, matching must",
    ),
    "a letter without its choice": (
        '{"question": "Which?\\n (A) this", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}',
        "mine.jsonl:2: the question names 1 choices, its answers 2",
    ),
    "answers without a question": (
        '{"answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}',
        "mine.jsonl:2: question:",
    ),
}


@pytest.mark.parametrize(("line", "error"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_of_a_jsonl_file_is_named(pasto, project, line, error):
    (project.root / "mine.jsonl").write_text(f"{json.dumps(MINE[1])}\n{line}\n")
    said = pasto("eval", "-b", "mine.jsonl")
    assert (said.code, said.out) == (1, "") and error in said.error
    assert "docs/benchmarks.md" in said.next_step


def test_a_first_line_that_is_neither_head_nor_question_is_named(pasto, project):
    (project.root / "mine.jsonl").write_text('\n{"qestion": "Is it?", "matching": "yes"}\n')
    said = pasto("eval", "-b", "mine.jsonl")
    assert (
        (said.code, said.out) == (1, "")
        and "mine.jsonl:2:" in said.error
        and "unknown key" in said.error
    )


# ----------------------------------------------------------------------------------------------
# oracles, and disturbance


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


def test_a_comparison_of_several_adapters_is_refused(pasto, tmp_path):
    said = pasto("eval", "runs/a", "runs/b", "--baseline", "prompt")
    assert (said.code, said.out) == (
        1,
        "",
    ) and said.error == "error: several adapters do not go with a comparison"


def test_eval_measures_what_the_dial_disturbs(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    said = pasto("eval", *CANDOUR, "--coeffs=-1,-0.5,0,1")
    assert said.code == 0, said.err
    run = parse((project.run / "eval" / "own.json").read_text())
    assert list(run.disturbance) == ["-1", "-0.5", "0", "1"]
    assert (
        run.disturbance["0"]["kl_p95"]["value"] == run.disturbance["0"]["nll_shift"]["value"] == 0
    )
    kl = {a: found["kl_p95"] for a, found in run.disturbance.items()}
    assert (
        0 < kl["-0.5"]["value"] < kl["-1"]["value"] and kl["1"]["value"] > 0
    )  # half the way disturbs less
    assert all(
        e["low"] <= e["value"] <= e["high"] and e["clusters"] == PROMPTS for e in kl.values()
    )
    shift = run.disturbance["1"]["nll"]["value"] - run.disturbance["0"]["nll"]["value"]
    assert run.disturbance["1"]["nll_shift"]["value"] == pytest.approx(shift, abs=1e-9)
    assert f"on {PROMPTS} neutral prompts" in said.out and f"{kl['1']['value']:.2f} [" in said.out


def test_eval_twice_gives_the_same_rows_and_scores(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    score_every_answer(project.run)
    first, second = (strict(pasto("eval", *CANDOUR, "--json").out) for _ in range(2))
    for part in ("rows", "scores", "disturbance"):
        assert first[part] == second[part]
    assert first["scores"]["slope"]["value"] is not None  # there was something to compare


# ------------------------------------------------------------------------------------------------------------
# the report


class Page(HTMLParser):
    """Tags with their attributes, the text of a page, that of each part under its heading, and what
    stands in <style>."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.styles, self.parts = [], "", "", {}
        self._open, self._heading = "", None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self._open = tag
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "style":
            self.styles += data
            return
        self.text += data
        if self._open == "h2":
            self._heading = data
        if self._heading is not None:
            self.parts[self._heading] = self.parts.get(self._heading, "") + data

    @property
    def headings(self):
        return list(self.parts)

    @property
    def names(self):
        return {tag for tag, _ in self.tags}

    @property
    def attributes(self):
        return [(name, value or "") for _, attrs in self.tags for name, value in attrs.items()]


@pytest.fixture(scope="module")
def measured_once(trained, tmp_path_factory):
    """A finished run with an evaluation, a comparison and sentiment, shared by the module: nothing
    may change it."""
    root = tmp_path_factory.mktemp("measured")
    shutil.copytree(trained.root / "runs", root / "runs", symlinks=True)
    run = root / "runs" / trained.run.name
    score_every_answer(run)
    (root / "own.yaml").write_text(OWN)
    for args in (CANDOUR, (*CANDOUR, "--baseline", "prompt"), ("-b", "sentiment", "--limit", "2")):
        said = call_in(root, "eval", *args)
        assert said.code == 0, said.err
    return Finished(root, run, trained.said)


@pytest.fixture(scope="module")
def page(measured_once, tmp_path_factory):
    """The report of the shared measured run."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    said = call_in(measured_once.root, "report", "--out", path)
    assert said.code == 0, said.err
    return Page(path)


@pytest.fixture()
def measured(measured_once, tmp_path):
    """A copy of the measured run, in the folder where `pasto` works."""
    shutil.copytree(measured_once.root, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Finished(tmp_path, tmp_path / "runs" / measured_once.run.name, measured_once.said)


def reported(pasto, project, *args):
    said = pasto("report", *args)
    assert said.code == 0, said.err
    return Page(project.run / "report.html")


def test_report_has_a_part_for_everything_that_was_measured(page, measured_once):
    assert page.headings == [
        "Certificate: sign and strength on held-out text",
        "A benchmark of our own",
        "Beside other methods on own",
        "Sentiment of answers to neutral open prompts",
        "Training",
        "Texts",
        "How it was made",
        "How to cite",
    ]
    run = parse((measured_once.run / "eval" / "own.json").read_text())
    assert (
        "candour: n = 2 rows of 1 dilemmas and 4 control rows. Source: this test; licence MIT."
        in page.text
    )
    assert f"{run.scores['slope']['value']:+.2f}" in page.text
    for caption in (
        "Dose-response",
        "What moves",
        "Flips by direction",
        "Disturbance: KL",
        "Capability cost",
        "Low where texts",
    ):
        assert caption in page.text
    assert "No benchmark was run yet" not in page.text


def test_every_figure_of_a_report_says_what_it_shows(page):
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert len(labels) == len(set(labels)) == sum(tag == "figcaption" for tag, _ in page.tags) > 10


def test_report_loads_nothing_from_anywhere(page):
    assert not page.names & {
        "script",
        "link",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "base",
        "source",
        "form",
    }
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert value.startswith("#"), (name, value)
        assert not name.startswith("on") and name != "http-equiv"
        assert "url(" not in value.replace("url(#", "")
    assert "@import" not in page.styles and "url(" not in page.styles


def test_report_shares_no_id_between_its_figures(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {x for _, value in page.attributes for x in re.findall(r"url\(#([^)]+)\)", value)}
    wanted |= {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")}
    assert wanted and wanted <= set(ids)  # clips and marks are found


def test_report_before_any_evaluation(pasto, project):
    page = reported(pasto, project, "--samples", 0)
    assert (
        page.headings[0].startswith("Certificate")
        and "Training" in page.headings
        and "Texts" not in page.headings
    )
    assert "No benchmark was run yet" in page.text


def test_report_without_samples_loads_no_model(pasto, project):
    (project.run / "adapter" / "adapter.safetensors").unlink()
    assert pasto("report", "--samples", 0).code == 0
    assert pasto("report", "--samples", 1).code == 1  # that would need it


def test_report_shows_texts_and_keeps_them(pasto, project):
    page = reported(pasto, project, "--samples", 2)
    prompts = bundled.lines("sentiment_prompts.txt")[:2]
    kept = strict((project.run / "samples.json").read_text())
    assert [sample["prompt"] for sample in kept] == prompts
    assert (
        set(kept[0]["texts"]) == {"-1", "0 (base)", "+1"}
        and len(set(kept[0]["texts"].values())) > 1
    )
    for sample in kept:
        assert sample["prompt"] in page.text and all(
            text in page.text for text in sample["texts"].values()
        )
    (project.run / "adapter" / "adapter.safetensors").unlink()
    assert reported(pasto, project, "--samples", 2).text == page.text  # no model is needed again
    assert prompts[1] not in reported(pasto, project, "--samples", 1).text


def test_report_shows_the_texts_of_the_sentiment_benchmark(pasto, measured):
    page = reported(pasto, measured, "--samples", 1)
    texts = strict((measured.run / "eval" / "sentiment.json").read_text())["texts"]
    assert all((t["text"] in page.text) for t in texts[:3]) and texts[3]["prompt"] not in page.text
    assert not (measured.run / "samples.json").exists()


def test_report_of_sentiment_on_one_prompt(pasto, project):
    """One prompt has no interval: the file holds null, and the page draws the curve without a
    band."""
    assert pasto("eval", "-b", "sentiment", "--limit", 1).code == 0
    page = reported(pasto, project)
    assert (
        "Sentiment of answers to neutral open prompts" in page.headings and "nan" not in page.text
    )


def test_report_goes_where_it_is_told(pasto, measured):
    before = contents(measured.run)
    said = pasto("report", "runs/latest", "--out", "page.html", "--json")
    page = measured.root / "page.html"
    assert strict(said.out) == {"report": "page.html", "bytes": page.stat().st_size}
    assert "</html>" in page.read_text() and contents(measured.run) == before
    assert (
        pasto("report", "--out", "page.html").out
        == f"report: page.html ({page.stat().st_size / 1e3:.0f} kB)\n"
    )


MISSING = {
    "a folder that is not there": (("runs/gone",), "runs/gone", "runs/latest"),
    "a folder that is not there, by path": (
        ("./gone",),
        "gone: no adapter here",
        "folder of a run",
    ),
    "an adapter without its run": (
        ("bare",),
        "bare: a report needs the folder of a run",
        "runs/latest",
    ),
    "a folder that cannot be written to": (
        ("--out", "gone/page.html"),
        "cannot write gone/page.html",
        "--out",
    ),
}


@pytest.mark.parametrize(("args", "error", "next_step"), MISSING.values(), ids=MISSING)
def test_a_report_that_cannot_be_made(pasto, project, args, error, next_step):
    shutil.copytree(project.run / "adapter", project.root / "bare")
    before = contents(project.root)
    said = pasto("report", *args, "--samples", 0)
    assert (said.code, said.out) == (1, "")
    assert error in said.error and next_step in said.next_step
    assert contents(project.root) == before


def test_a_report_without_any_run(pasto, tmp_path):
    said = pasto("report")
    assert (
        (said.code, said.out) == (1, "")
        and "no finished run in runs/" in said.error
        and "pasto train" in said.next_step
    )


def test_a_report_of_a_damaged_history_is_refused(pasto, project):
    path = project.run / "history.jsonl"
    path.write_text('{"epoch": \n' + path.read_text())
    said = pasto("report", "--samples", 0)
    assert (said.code, said.out) == (1, "") and "history.jsonl" in said.error and said.next_step


def test_half_a_last_line_of_history_is_passed_over(pasto, project):
    """A training that was killed while it wrote leaves one."""
    whole = reported(pasto, project, "--samples", 0).text
    with (project.run / "history.jsonl").open("a") as file:
        file.write('{"epoch": ')
    assert reported(pasto, project, "--samples", 0).text == whole


def test_a_report_passes_over_files_that_are_no_evaluations(pasto, measured):
    for name, text in (
        ("half.json", "{"),
        ("list.json", "[]"),
        ("old.json", '{"format_version": 1}'),
    ):
        (measured.run / "eval" / name).write_text(text)
    assert "A benchmark of our own" in reported(pasto, measured).headings


def test_report_holds_recipe_and_hashes(page, measured_once):
    assert (measured_once.run / "recipe.yaml").read_text().strip() in page.text
    meta = strict((measured_once.run / "adapter" / "pasto.json").read_text())
    assert meta["pairs_sha256"] in page.text and meta["created"] in page.text
    assert meta["base"]["fingerprints"]
    for path, digest in meta["base"]["fingerprints"].items():
        assert f"{digest}  {path}" in page.text


def test_report_shows_markup_as_text(pasto, measured):
    """A model may write anything, and so may the author of a benchmark."""
    nasty = "<b>&amp;<script>alert(1)</script></div>"
    path = measured.run / "eval" / "sentiment.json"
    found = json.loads(path.read_text())
    for text in found["texts"]:
        text["prompt"] += nasty
        text["text"] = f"{nasty} at {text['coefficient']:g}"
    path.write_text(json.dumps(found))
    path = measured.run / "eval" / "own.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"title": nasty, "source": nasty, "licence": nasty, "value": nasty}
        )
    )
    page = reported(pasto, measured)
    assert not page.names & {"b", "script"}
    assert (
        page.text.count(nasty) >= 4 + 2 * 4
    )  # title, source, licence, value; two prompts and their three texts
    assert all(f"{nasty} at {a}" in page.text for a in ("-1", "0", "1"))


def test_two_reports_of_a_run_are_the_same_bytes(pasto, measured):
    assert pasto("report").code == pasto("report", "runs/latest", "--out", "again.html").code == 0
    assert (measured.run / "report.html").read_bytes() == (
        measured.root / "again.html"
    ).read_bytes()


def test_report_of_undefined_scores_says_undefined(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    assert "Scores are undefined" in pasto("eval", *CANDOUR).out
    page = reported(pasto, project, "--samples", 0)
    assert page.text.count("undefined") >= 4 and not re.search(r"\bnan\b", page.text)
    assert "Capability cost" in page.text  # what was measured is shown all the same


def test_report_of_an_interrupted_training(pasto, project):
    path = project.run / "adapter" / "pasto.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"certificate": None}))
    assert (
        "There is none: training was interrupted" in reported(pasto, project, "--samples", 0).text
    )


def test_report_compares_only_what_was_asked_the_same(pasto, measured):
    """Results of an earlier comparison, on other rows, stay in eval/: they must not stand in one
    figure with the last."""
    part = "Beside other methods on own"
    assert "prompt" in reported(pasto, measured).parts[part]
    path = measured.run / "eval" / "own-prompt-compared.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"rows": run["rows"][2:]}))
    found = reported(pasto, measured).parts[part]
    assert "adapter" in found and "prompt" not in found
