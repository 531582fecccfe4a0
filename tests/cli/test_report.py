"""`pasto report`."""

import json
import random
import re
import shutil
from html.parser import HTMLParser

import pytest

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.tell_apart import ends_apart
from pasto_cli.core.records.evaluation import parse
from pasto_cli.workflows import report
from pasto_cli.workflows.dials import open_dial
from pasto_cli.workflows.progress import Silent
from tests.support.runs import CANDOUR, score_every_answer
from tests.support.terminal import OWN, Finished, call_in, contents, strict


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
    for args in (
        ("eval", *CANDOUR),
        ("eval", *CANDOUR, "--baseline", "prompt"),
        ("eval", "-b", "sentiment", "--limit", "2"),
        ("report",),
    ):
        said = call_in(root, *args)
        assert said.code == 0, said.err
    return Finished(root, run, trained.said)


@pytest.fixture(scope="module")
def page(measured_once, tmp_path_factory):
    """The report of the shared measured run."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    said = call_in(measured_once.root, "report", "--samples", 2, "--out", path)
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
    assert f"{run.scores.slope.value:+.2f}" in page.text
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
    kept = strict((project.run / "samples.json").read_text())
    assert [sample["control"] for sample in kept] == [False, False, True]
    assert (
        set(kept[0]["texts"]) == {"-1", "0 (base)", "+1"}
        and len(set(kept[0]["texts"].values())) > 1
    )
    for sample in kept:
        assert sample["prompt"] in page.text and all(
            text in page.text for text in sample["texts"].values()
        )
    assert "The prompts were chosen: of 6 held-out ones" in page.text
    (project.run / "adapter" / "adapter.safetensors").unlink()
    assert reported(pasto, project, "--samples", 2).text == page.text  # no model is needed again
    fewer = reported(pasto, project, "--samples", 1).text
    assert kept[1]["prompt"] not in fewer and f"Control: {kept[2]['prompt']}" in fewer


def test_report_chooses_the_prompts_where_the_ends_are_furthest_apart(pasto, project):
    """Of prompts that were not trained on; the control is an anchor that was held out."""
    reported(pasto, project, "--samples", 3)
    kept = strict((project.run / "samples.json").read_text())
    control = kept.pop()
    apart = [sample["apart"] for sample in kept]
    assert apart == sorted(apart, reverse=True) and apart[-1] > 0
    known = bundled.lines("questions.txt") + bundled.lines("sentiment_prompts.txt")
    assert {sample["prompt"] for sample in kept} <= set(known) - {control["prompt"]}
    dial = open_dial(str(project.run), Silent())
    asked = random.Random(0).sample(known, report.CANDIDATES)
    every = ends_apart(dial.lm, dial.steerer, asked)
    assert apart == pytest.approx(sorted(every)[:-4:-1], rel=1e-3)


def test_report_takes_texts_of_earlier_versions(pasto, project):
    kept = [{"prompt": "Who are you?", "texts": {"-1": "Me.", "+1": "You."}}]
    (project.run / "samples.json").write_text(json.dumps(kept))
    page = reported(pasto, project, "--samples", 1)
    assert "Who are you?" in page.text and "were chosen" not in page.text


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
        ("--out", "bare/pasto.json/page.html"),
        "bare/pasto.json",
        "",
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


def test_a_damaged_line_of_history_costs_that_line(pasto, project):
    whole = reported(pasto, project, "--samples", 0).text
    path = project.run / "history.jsonl"
    path.write_text('{"epoch": \n' + path.read_text())
    assert reported(pasto, project, "--samples", 0).text == whole
    assert "1 damaged lines are left out (1)" in pasto("report", "--samples", 0).err


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
    path = measured.run / "samples.json"
    found = json.loads(path.read_text())
    for sample in found:
        sample["prompt"] += nasty
        sample["texts"] = {a: f"{nasty} at {a}" for a in sample["texts"]}
    path.write_text(json.dumps(found))
    path = measured.run / "eval" / "own.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"title": nasty, "source": nasty, "licence": nasty, "value": nasty}
        )
    )
    page = reported(pasto, measured, "--samples", 2)
    assert not page.names & {"b", "script"}
    # title, source, licence, value; two prompts with a control, and three texts of each
    assert page.text.count(nasty) >= 4 + 3 * 4
    assert all(f"{nasty} at {a}" in page.text for a in ("-1", "0 (base)", "+1"))


def test_two_reports_of_a_run_are_the_same_bytes(pasto, measured):
    again = ("report", "runs/latest", "--samples", "2", "--out", "again.html")
    assert pasto("report", "--samples", "2").code == pasto(*again).code == 0
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
