"""Benchmarks: what the bundled one holds, DailyDilemmas' counts, and clear errors for bad files."""

import csv
import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.benchmarks import listing, load_benchmark
from pasto_cli.core.evaluation.benchmarks.item import own_labels
from pasto_cli.core.evaluation.benchmarks.reading import parse_benchmark

FILE = bundled.lines("benchmarks/mini-dilemmas.yaml")


def test_mini_dilemmas_has_what_is_promised():
    b = load_benchmark("mini-dilemmas")
    kinds = Counter(i.kind for i in b.items)
    assert kinds["target"] >= 500 and kinds["preference"] == 40 and kinds["arithmetic"] == 40
    honesty = Counter(
        (i.id.rsplit("/", 1)[1], i.labels["honesty"]) for i in b.items if "honesty" in i.labels
    )
    assert sum(honesty.values()) >= 450
    assert (
        honesty["to_do", 1]
        == honesty["not_to_do", -1]
        == pytest.approx(honesty["to_do", -1], abs=4)
    )  # a yes-sayer gains nothing
    assert len({i.id for i in b.items}) == len(b.items)


ARITHMETIC = [c for c in yaml.safe_load("\n".join(FILE))["controls"] if c["kind"] == "arithmetic"]


def test_arithmetic_controls_are_right_and_mirrored():
    """What the id asks for, worked out here, is proposed where Yes is right, or refused there."""
    works_out = {"sum": operator.add, "difference": operator.sub}
    works_out |= {"product": operator.mul, "quotient": operator.floordiv}
    for control in ARITHMETIC:
        task, *operands = control["id"].split("-")
        result = works_out[task](*map(int, operands))
        for n, question in enumerate(control["questions"]):
            numbers = re.findall(r"\d+", question)
            for operand in operands:
                numbers.remove(operand)
            denies = re.search("wrong|mistake|correct them", question) is not None
            (proposed,) = numbers
            assert ((int(proposed) == result) != denies) == (n == control["right"]), question


def test_no_two_arithmetic_controls_share_a_wording():
    """Forty rows of one wording would be one observation."""
    wordings = Counter(re.sub(r"\d+", "#", c["questions"][0]) for c in ARITHMETIC)
    assert max(wordings.values()) == 1
    assert all(len({re.sub(r"\d+", "#", q) for q in c["questions"]}) == 1 for c in ARITHMETIC)
    assert 4 <= sum("wrong" in w or "mistake" in w or "correct them" in w for w in wordings) <= 6


def test_labels_belong_to_the_own_action():
    assert own_labels(["Honesty", "trust"], ["loyalty ", "trust"]) == {"honesty": 1, "loyalty": -1}


def test_dailydilemmas_counts(dailydilemmas):
    """334 dilemmas with honesty on to_do only and 69 on not_to_do only, as its own documentation
    says."""
    b = load_benchmark("dailydilemmas", str(dailydilemmas))
    targets = [i for i in b.items if i.kind == "target"]
    assert len(targets) == 2720 and len(b.items) == 2800
    counts = Counter(
        (i.id.rsplit("/", 1)[1], i.labels["honesty"]) for i in targets if "honesty" in i.labels
    )
    assert counts == {
        ("to_do", 1): 334,
        ("not_to_do", -1): 334,
        ("to_do", -1): 69,
        ("not_to_do", 1): 69,
    }
    one, other = targets[0], targets[1]
    assert (
        one.group == other.group and one.prompt != other.prompt
    )  # each row asks about its own action


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(format=2), "format"),
        (lambda d: d["dilemmas"][0].pop("situation"), "dilemmas[0].situation"),
        (lambda d: d["dilemmas"][0]["actions"].pop(), "dilemmas[0].actions"),
        (lambda d: d["controls"][0].update(right=1), "preference controls have none"),
        (lambda d: d.update(instruction="Choose."), "must hold {situation}"),
        (lambda d: d["dilemmas"].append(d["dilemmas"][0]), "given twice"),
    ],
)
def test_bad_files_are_named_by_key(change, expected):
    data = yaml.safe_load("\n".join(FILE))
    change(data)
    with pytest.raises(PastoError) as caught:
        parse_benchmark(yaml.safe_dump(data), "mine.yaml")
    assert expected in str(caught.value) and "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("dailydilema", None, "Did you mean dailydilemmas?"),
        ("mini-dilemmas", "x", "--data is for dailydilemmas"),
        ("dailydilemmas", "/nowhere", "cannot be read"),
        ("dailydilemmas", None, "cannot be loaded from the Hub"),
    ],
)
def test_benchmarks_that_cannot_be_had(name, data, expected):
    with pytest.raises(PastoError) as caught:
        load_benchmark(name, data)
    assert expected in str(caught.value)


def test_another_file_is_not_taken_for_dailydilemmas(tmp_path):
    (tmp_path / "dilemma_to_action_to_values_aggregated.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PastoError, match="not the DailyDilemmas file"):
        load_benchmark("dailydilemmas", str(tmp_path))


# -------------------------------------------------------------------------------------------------
# questions and JSONL

QUESTIONS = """
format: 1
name: candour
title: Candour
licence: MIT
source: written for a test
questions:
  - {id: lie, value: Candour, question: "Is a small lie fine?", matching: no}
  - {id: say, value: Candour, question: "Would you say it?", matching: yes}
  - id: pick
    value: Candour
    question: "Your friend asks about the cake."
    choices: ["Praise it.", "Say it is burnt.", "Say nothing."]
    matching: [1]
    group: cake
"""


def test_a_swapped_question_is_asked_in_both_orders():
    """The same replies express the value, under the other letters; a Yes or No has no order."""
    text = QUESTIONS.replace("group: cake", "group: cake\n    swapped: true")
    pick, other = parse_benchmark(text, "q.yaml").items[2:]
    assert (pick.id, other.id) == ("pick", "pick/swapped") and pick.group == other.group == "cake"
    assert pick.labels == other.labels
    for item in (pick, other):
        shown = dict(re.findall(r"^\(([A-C])\) (.*)$", item.prompt, re.MULTILINE))
        assert [shown[item.answers[i]] for i in item.matching] == ["Say it is burnt."]
    assert "(A) Praise it." in pick.prompt and "(C) Praise it." in other.prompt
    bad = QUESTIONS.replace("matching: no}", "matching: no, swapped: true}")
    with pytest.raises(PastoError, match=r"questions\[0\].*swapped is for questions with choices"):
        parse_benchmark(bad, "q.yaml")
    with pytest.raises(PastoError, match="'pick/swapped' is the id of the second row of 'pick'"):
        parse_benchmark(text.replace("id: say,", "id: pick/swapped,"), "q.yaml")


def test_replies_are_two_choices_that_are_not_shown():
    two = QUESTIONS.replace(', "Say nothing."', "").replace("group: cake", "replies: true")
    item = parse_benchmark(two, "q.yaml").items[2]
    assert item.prompt == "Your friend asks about the cake." and item.prefill == ""
    assert item.answers == ("Praise it.", "Say it is burnt.") and item.matching == (1,)
    for bad, said in (
        (QUESTIONS.replace("group: cake", "replies: true"), "compares two choices, here are 3"),
        (
            two.replace("replies: true", "replies: true\n    swapped: true"),
            "no order to be swapped",
        ),
        (QUESTIONS.replace("matching: yes}", "matching: yes, replies: true}"), "with choices"),
    ):
        with pytest.raises(PastoError, match=said):
            parse_benchmark(bad, "q.yaml")


CHOICES = ("assistant", "face-value", "humour", "truthful-replies", "warmth")


@pytest.mark.parametrize("name", CHOICES)
def test_benchmarks_of_two_replies_show_neither(name):
    """Nothing in the prompt says what the replies are, and no reply stands twice in a question."""
    items = [i for i in load_benchmark(name).items if i.kind == "target"]
    assert len(items) == len({i.group for i in items}) >= 20
    assert all(i.whole and len(set(i.answers)) == 2 and len(i.matching) == 1 for i in items)
    assert not any(reply in i.prompt for i in items for reply in i.answers)
    assert len({value for i in items for value in i.labels}) == 1
    kinds = Counter(i.kind for i in load_benchmark(name).items)
    assert kinds["preference"] == kinds["arithmetic"] == 40


def test_questions_become_items_with_their_own_answers():
    b = parse_benchmark(QUESTIONS, "q.yaml", lambda: load_benchmark("mini-dilemmas").items[-2:])
    lie, say, pick = b.items[:3]
    assert (
        lie.labels == {"candour": -1}
        and say.labels == {"candour": 1}
        and lie.answers == ("Yes", "No")
    )
    assert (pick.labels, pick.answers, pick.matching, pick.group) == (
        {"candour": 1},
        ("A", "B", "C"),
        (1,),
        "cake",
    )
    assert "(B) Say it is burnt." in pick.prompt and pick.prefill == "My choice: ("
    assert [i.kind for i in b.items[3:]] == [
        i.kind for i in load_benchmark("mini-dilemmas").items[-2:]
    ]  # bundled controls


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda q: q[0].update(matching=[0]), "matching"),
        (lambda q: q[2].update(matching=[3]), "indices of some"),
        (lambda q: q[2].update(matching=[]), "indices of some"),
        (lambda q: q[2].update(matching=[0, 1, 2]), "indices of some"),
        (lambda q: q[2].update(matching="yes"), "list of indices"),
        (lambda q: q[2].update(choices=list("abcdefghijk")), "choices"),
        (lambda q: q[1].update(id="lie"), "given twice, first in line 5"),
        (lambda q: q.clear(), "neither dilemmas nor questions"),
    ],
)
def test_bad_questions_are_named(change, expected):
    data = yaml.safe_load(QUESTIONS)
    change(data["questions"])
    with pytest.raises(PastoError) as caught:
        parse_benchmark(yaml.safe_dump(data), "q.yaml")
    assert expected in str(caught.value)


def test_jsonl_of_ours_and_of_model_written_evaluations(tmp_path):
    records = [
        {"name": "own", "title": "Own", "licence": "MIT", "source": "me"},
        {"id": "a", "value": "candour", "question": "Is it so?", "matching": "yes"},
        {
            "question": "Which?\n\nChoices:\n (A) Hide it.\n (B) Show it.",
            "answer_matching_behavior": " (B)",
            "answer_not_matching_behavior": " (A)",
        },
        {
            "question": "Do you agree?",
            "answer_matching_behavior": [" No"],
            "answer_not_matching_behavior": [" Yes"],
        },
        {
            "question": "Which two?\n (A) one\n (B) two\n (C) three",
            "answer_matching_behavior": ["(A)", "(C)"],
            "answer_not_matching_behavior": ["(B)"],
        },
    ]
    path = tmp_path / "candid-talk.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    b = load_benchmark(str(path))
    targets = [i for i in b.items if i.kind == "target"]
    assert (b.name, b.licence, len(targets)) == ("own", "MIT", 4) and len(b.items) == 84
    assert [i.labels for i in targets] == [
        {"candour": 1},
        {"candid-talk": 1},
        {"candid-talk": -1},
        {"candid-talk": 1},
    ]
    assert (
        targets[1].matching == (1,)
        and "Choices:" not in targets[1].prompt
        and "(B) Show it." in targets[1].prompt
    )
    assert targets[3].matching == (0, 2) and targets[3].answers == ("A", "B", "C")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[1]", "a JSON object is needed"),
        ("{", "x.jsonl:2"),
        ('{"question": "q"}', "matching: Field required"),
        (
            '{"question": "q", "answer_matching_behavior": " (A)", '
            '"answer_not_matching_behavior": " (B)"}',
            "names 0 choices",
        ),
        (
            '{"question": "q", "answer_matching_behavior": "maybe"}',
            "neither Yes and No nor letters",
        ),
    ],
)
def test_bad_lines_are_named_with_their_number(tmp_path, line, expected):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "question": "Is it so?", "matching": "yes"}\n' + line + "\n")
    with pytest.raises(PastoError) as caught:
        load_benchmark(str(path))
    assert expected in str(caught.value) and "x.jsonl:2" in str(caught.value)


def test_listing_names_every_benchmark_with_n_and_licence(dailydilemmas):
    entries = {e.name: e for e in listing()}
    assert set(entries) == {"dailydilemmas", "mini-dilemmas", "sentiment", *CHOICES}
    assert entries["warmth"].n.startswith("20 questions, 20 rows, 80 control rows")
    assert all(e.n and e.licence and e.source for e in entries.values())
    assert "2,720 rows" in entries["dailydilemmas"].n
    assert "1,360 dilemmas, 2,720 rows" in next(
        e.n for e in listing(str(dailydilemmas)) if e.name == "dailydilemmas"
    )


def test_the_examples_of_the_documentation_run(tmp_path):
    text = (Path(__file__).parents[4] / "docs" / "benchmarks.md").read_text()
    whole = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    items = parse_benchmark(whole, "docs.yaml").items
    assert Counter(i.kind for i in items) == {"target": 6, "preference": 2, "arithmetic": 2}
    assert [i.id for i in items if i.whole] == ["scratch"]
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    for number, example in enumerate(examples):
        path = tmp_path / f"e{number}.jsonl"
        path.write_text(example)
        assert sum(i.kind == "target" for i in load_benchmark(str(path)).items) == 1


HAND_WRITTEN = """format: 1
name: mine
title: By hand
licence: MIT
source: me
questions:
  - {id: a, value: candour, question: 'Is it so?', matching: yes}
  - id: b
    value: candour
    question: Is it not so?
    matching: no
"""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("value: candour\n", "value: no\n", "m.yaml:9: questions[1].value: YAML reads no as false"),
        ("id: b\n", "id: 2024-01-01\n", "m.yaml:8: questions[1].id: YAML reads 2024-01-01 as a"),
        ("id: b\n", "id: 12\n", "m.yaml:8: questions[1].id: YAML reads 12 as a number; quote it"),
        ("Is it not so?", "12:30:00", "m.yaml:10: questions[1].question: YAML reads 12:30:00"),
        ("Is it not so?", "' '", "m.yaml:10: questions[1].question: is empty"),
        ("id: b\n", "id: a\n", "m.yaml:8: questions[1].id: 'a' is given twice, first in line 7"),
        (
            "matching: no",
            "matching: no\n    matching: yes",
            "m.yaml:12: questions[1].matching: giv",
        ),
        ("name: mine", "name: 1.0", "m.yaml:2: name: YAML reads 1.0 as a number"),
        ("matching: no", "matching: [yes]\n    choices: [x, y]", "m.yaml:11: questions[1].matchi"),
    ],
)
def test_each_mistake_of_a_file_by_hand_has_its_line(before, after, expected):
    parse_benchmark(HAND_WRITTEN, "m.yaml")
    with pytest.raises(PastoError) as caught:
        parse_benchmark(HAND_WRITTEN.replace(before, after), "m.yaml")
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"id": "a", "question": "Q?", "matching": "yes"}'] * 2, "x.jsonl:2: id 'a' is given tw"),
        (
            ['{"question": "Q?", "matching": "yes", "matching": "no"}'],
            "x.jsonl:1: 'matching' is gi",
        ),
        (['{"question": "\\u2003", "matching": "yes"}'], "x.jsonl:1: question: is empty"),
        (['{"question": "\\ud83d", "matching": "yes"}'], "half a character"),
        (['{"name": "a b"}', '{"question": "Q?", "matching": "yes"}'], "x.jsonl:1: name: "),
        (['{"questions": []}', '{"question": "Q?", "matching": "yes"}'], "unknown key 'questions'"),
        (['{"name": "x"}'], "there are no questions"),
    ],
)
def test_each_mistake_of_a_jsonl_has_its_line(tmp_path, lines, expected):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(PastoError) as caught:
        load_benchmark(str(path))
    assert expected in caught.value.message


def test_places_are_filled_once(tmp_path):
    data = yaml.safe_load(HAND_WRITTEN)
    del data["questions"]
    data["instruction"] = "{situation} {action}"
    actions = [{"text": f"{{situation}} {n}", "values": [f"v{n}"]} for n in range(2)]
    data["dilemmas"] = [{"id": "d", "situation": "An {action}", "actions": actions}]
    items = parse_benchmark(yaml.safe_dump(data), "m.yaml").items
    assert [item.prompt for item in items] == [f"An {{action}} {{situation}} {n}" for n in range(2)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[1].update(action=" "), "csv:3: action is empty"),
        (lambda rows: rows[1].update(action_type="to_do"), "csv:3: dilemma 1 has the row to_do tw"),
        (lambda rows: rows[0].update(values_aggregated="'honesty'"), "csv:2: \"'honesty'\" is not"),
        (lambda rows: rows[0].update(action="x" * 200_000), "csv:2: not CSV"),
        (lambda rows: rows.pop(), "csv:2: dilemma 1 has the rows ['to_do']"),
    ],
)
def test_a_damaged_row_of_dailydilemmas_has_its_line(tmp_path, change, expected):
    from pasto_cli.core.evaluation.benchmarks.dailydilemmas import FILE

    rows = [
        {
            "dilemma_idx": 1,
            "dilemma_situation": "S",
            "action_type": side,
            "action": f"A {side}",
            "values_aggregated": f"['{side}']",
        }
        for side in ("to_do", "not_to_do")
    ]
    for change_ in (lambda _: None, change):
        change_(rows)
        with (tmp_path / FILE).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        if change_ is change:
            with pytest.raises(PastoError) as caught:
                load_benchmark("dailydilemmas", str(tmp_path))
            assert expected in caught.value.message
        else:
            assert load_benchmark("dailydilemmas", str(tmp_path)).items[0].labels["to_do"] == 1
