"""YAML by hand: where each value stands, and bare words that it reads as something else."""

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.base.marked_yaml import dotted, read_yaml, reading


@pytest.mark.parametrize(
    ("plain", "what"),
    [
        ("no", "as false"),
        ("On", "as true"),
        ("1234567", "as a number"),
        ("0123456", "as the number 42798"),
        ("1.0", "as a number"),
        ("12:30:00", "as the number 45000"),
        ("2024-01-01", "as a date"),
        ("0x1F", "as the number 31"),
    ],
)
def test_bare_words_that_are_no_text(plain, what):
    said = reading(plain)
    assert said and f"YAML reads {plain} {what}" in said and f"quote it: '{plain}'" in said
    assert reading(f"'{plain}'") is None


@pytest.mark.parametrize("plain", ["honest", "1e-3", "08", "a: b", "~", "no way"])
def test_bare_words_that_are_left_alone(plain):
    assert reading(plain) is None


def test_every_value_has_its_line():
    document = read_yaml("a: 1\nb:\n  - x\n  - c: no\n    d: 'no'\n", "x.yaml")
    assert document.places["b", 1, "c"].line == 4
    assert document.quote(("b", 1, "c")) and document.quote(("b", 1, "d")) is None
    nearest = document.nearest(("b", 1, "nowhere"))
    assert nearest and nearest.line == 4
    assert dotted(("b", 1, "c")) == "b[1].c"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "given twice"),
        ("a: 010\n", 1, "as the number 8"),
        ("a: [1, 1:30]\n", 1, "as the number 90"),
    ],
)
def test_mistakes_wherever_they_stand(text, line, words):
    ((found, _, said),) = read_yaml(text, "x.yaml").problems
    assert found == line and words in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2024-02-31\n", "x.yaml:2: not valid YAML: '2024-02-31'"),
        ('a: 1\nb: "\\ud83d"\n', "x.yaml:2: not valid YAML: \\ud83d is half a character"),
        ("a: 1\nb: \x07\n", "x.yaml:2: not valid YAML: the character U+0007"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: " + "9" * 5000, "x.yaml:1: not valid YAML"),
        ("a: 1\n---\na: 2\n", "x.yaml:2: not valid YAML"),
    ],
)
def test_what_is_no_yaml_is_one_line(text, words):
    with pytest.raises(PastoError) as caught:
        read_yaml(text, "x.yaml")
    assert words in caught.value.message and "\n" not in caught.value.message


def test_a_character_that_json_wrote_as_two_escapes():
    assert read_yaml('a: "\\ud83d\\ude00"', "x").data == {"a": "😀"}
