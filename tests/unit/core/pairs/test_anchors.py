"""Anchors: enough of them, split without loss, none from a benchmark."""

import re

import pytest

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.pairs.anchors import (
    Anchor,
    AnchorSplit,
    load_anchors,
    read_anchors,
    require_no_overlap,
    split_anchors,
    write_anchors,
)


def questions_of(name: str, data: str | None = None) -> list[str]:
    """What a benchmark asks, without the instruction before it."""
    return [item.prompt.partition("\n\n")[2] for item in load_benchmark(name, data).items]


def test_the_bundled_corpus_is_large_and_of_several_kinds():
    anchors = load_anchors("bundled")
    assert len(anchors) >= 120
    assert {"facts", "arithmetic", "code", "format", "translation", "trivia"} <= {
        a.source for a in anchors
    }


def test_yes_and_no_are_both_right_often():
    yes_no = [a.prompt for a in load_anchors("bundled") if "Yes" in a.prompt]
    assert len(yes_no) >= 40
    assert len({prompt.split(":")[0].split(" ")[0] for prompt in yes_no}) >= 4  # phrasings
    # A dial that is held where a reply begins with Yes or No may still move those that come later.
    later = [prompt for prompt in yes_no if re.search(r'"[^"]+[:=] "?Yes', prompt)]
    assert len({re.sub(r'.*"([^"]+)[:=] "?Yes.*', r"\1", prompt) for prompt in later}) >= 6
    assert len(later) >= 30

    openings = [a.opening for a in load_anchors("bundled") if a.opening]
    assert len(openings) >= 80 and len(set(openings)) >= 20
    assert "My choice:" not in openings  # the benchmarks' own


@pytest.mark.parametrize("name", ["mini-dilemmas", "truthful-replies"])
def test_no_bundled_anchor_or_question_comes_from_a_bundled_benchmark(name):
    asked = questions_of(name)
    require_no_overlap(load_anchors("bundled"), asked, name)
    questions = [Anchor(line, "questions") for line in bundled.lines("questions.txt")]
    assert len(questions) >= 120 and len(set(questions)) == len(questions)
    require_no_overlap(questions, asked, name)


def test_no_bundled_anchor_or_question_comes_from_dailydilemmas(dailydilemmas):
    asked = questions_of("dailydilemmas", str(dailydilemmas))
    require_no_overlap(load_anchors("bundled"), asked, "dailydilemmas")
    questions = [Anchor(line, "questions") for line in bundled.lines("questions.txt")]
    require_no_overlap(questions, asked, "dailydilemmas")


def test_an_anchor_from_a_benchmark_is_refused():
    asked = questions_of("mini-dilemmas")
    taken = Anchor("Please tell me. " + asked[0], "mine")
    with pytest.raises(PastoError, match="1 anchors overlap with the benchmark mini-dilemmas"):
        require_no_overlap([*load_anchors("bundled"), taken], asked, "mini-dilemmas")


def test_the_split_loses_nothing_and_is_seeded():
    anchors = load_anchors("bundled")
    split = split_anchors(anchors, 0.25, seed=3)
    assert sorted(split.train + split.held_out) == sorted(anchors)
    assert {a.source for a in split.held_out} == {a.source for a in anchors}
    assert split == split_anchors(anchors, 0.25, seed=3)
    assert split.digest != split_anchors(anchors, 0.25, seed=4).digest


def test_both_parts_have_questions_of_both_kinds(tmp_path):
    """A file with a few of each, whatever the seed."""
    path = tmp_path / "mine.txt"
    lines = [f"Is {n} even?" for n in range(4)] + [f"Is {n} even?\t\tIs it odd?" for n in range(4)]
    path.write_text("\n".join(lines) + "\n")
    anchors = load_anchors(str(path))
    for seed in range(40):
        for part in split_anchors(anchors, 0.25, seed):
            assert {bool(anchor.opposite) for anchor in part} == {True, False}


def test_an_opening_stands_after_a_tab_and_survives_a_run(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(f"Is {n} even?\tVerdict:" for n in range(8)) + "\nIs 8 odd?\n")
    anchors = load_anchors(str(path))
    assert anchors[0] == Anchor("Is 0 even?", "mine", "Verdict:")
    assert anchors[-1] == Anchor("Is 8 odd?", "mine")
    split = split_anchors(anchors, 0.25, seed=0)
    write_anchors(split, tmp_path / "anchors.jsonl")
    assert read_anchors(tmp_path / "anchors.jsonl") == split
    bare = AnchorSplit(*([a._replace(opening="") for a in part] for part in split))
    assert bare.digest != split.digest


def test_a_question_asked_both_ways_stands_in_one_line_and_survives_a_run(tmp_path):
    path = tmp_path / "mine.txt"
    lines = [f"Is {n} even?\t\tIs {n} odd?" for n in range(4)]
    lines += [f"Is {n} small?\tVerdict:\tIs {n} large?" for n in range(4)]
    path.write_text("\n".join(lines) + "\n")
    anchors = load_anchors(str(path))
    assert anchors[0] == Anchor("Is 0 even?", "mine", "", "Is 0 odd?")
    assert anchors[-1] == Anchor("Is 3 small?", "mine", "Verdict:", "Is 3 large?")
    assert [anchor.line for anchor in anchors] == lines
    split = split_anchors(anchors, 0.25, seed=0)
    write_anchors(split, tmp_path / "anchors.jsonl")
    assert read_anchors(tmp_path / "anchors.jsonl") == split
    taken = Anchor("Is it fair?", "own", "", "You missed a deadline because you overslept, and")
    asked = [item.prompt.partition("\n\n")[2] for item in load_benchmark("mini-dilemmas").items]
    with pytest.raises(PastoError, match="1 anchors overlap"):
        require_no_overlap([taken], asked, "mini-dilemmas")


def test_a_fourth_column_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join([f"Is {n} even?" for n in range(9)] + ["a\tb\tc\td"]) + "\n")
    with pytest.raises(PastoError, match="has 4 columns, and an anchor at most 3"):
        load_anchors(str(path))


@pytest.mark.parametrize("line", ["\tVerdict:", "\t\tIs 8 odd?"])
def test_an_opening_needs_a_prompt_before_it(tmp_path, line):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(f"Is {n} even?" for n in range(8)) + f"\n{line}\n")
    with pytest.raises(PastoError, match="has no prompt before it"):
        load_anchors(str(path))


def test_some_are_trained_on_whatever_is_held_out():
    anchors = load_anchors("bundled")
    for share in (0.01, 0.99):
        split = split_anchors(anchors, share, seed=0)
        assert split.train and split.held_out


def test_a_file_of_anchors(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(f"What is {n} plus {n}?" for n in range(9)) + "\n", encoding="utf-8")
    anchors = load_anchors(str(path))
    assert len(anchors) == 9 and anchors[0].source == "mine"


def test_too_few_anchors_are_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("What is 1 plus 1?\nWhat is 1 plus 1?\n", encoding="utf-8")
    with pytest.raises(PastoError, match="1 different anchors, at least 8"):
        load_anchors(str(path))
