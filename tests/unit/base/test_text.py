"""Text of any tool: marks, encodings, line ends, halves of characters."""

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited, write_text
from pasto_cli.base.strict_json import parse_json, parse_json_object
from pasto_cli.base.text import decode_text, half_character, is_blank, joined_surrogates


@pytest.mark.parametrize(
    "raw",
    [
        "één\nzwei".encode(),
        b"\xef\xbb\xbf" + "één\nzwei".encode(),
        "één\r\nzwei".encode("utf-16"),
        b"\xfe\xff" + "één\rzwei".encode("utf-16-be"),
        "één\nzwei".encode("utf-32"),
        "één\r\n".encode() + b"\xef\xbb\xbf" + b"zwei",  # two files with marks, joined
    ],
)
def test_what_says_how_it_is_encoded_is_read(raw):
    assert decode_text(raw, "x.txt") == "één\nzwei"


@pytest.mark.parametrize(
    ("raw", "line", "words"),
    [
        (b"one\ncaf\xe9\n", 2, "0xE9 is not UTF-8"),
        (b"\xef\xbb\xbfone\r\ntwo\r\ncaf\xe9", 3, "0xE9 is not UTF-8"),
        (b"one\rtwo\rcaf\xe9", 3, "0xE9 is not UTF-8"),
        ("one\nz".encode("utf-16-le"), 1, "UTF-16"),
        ("één\nzwei".encode("utf-16-le"), 1, "UTF-16"),
    ],
)
def test_what_does_not_say_it_is_refused_with_its_line(raw, line, words):
    with pytest.raises(PastoError) as caught:
        decode_text(raw, "x.txt")
    assert f"x.txt:{line}: " in caught.value.message and words in caught.value.message
    assert "iconv" in caught.value.hint


def test_half_a_utf_16_file_is_refused():
    with pytest.raises(PastoError, match="not whole"):
        decode_text("ab".encode("utf-16")[:-1], "x.txt")


def test_what_is_no_text_is_a_damaged_file_to_readers_that_pass_over_one(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\x00\xff")
    with pytest.raises(ValueError):
        read_limited(tmp_path / "x", 100)


def test_halves_of_characters():
    assert half_character("a\ud83db") == "\\ud83d" and half_character("😀") is None
    assert joined_surrogates("\ud83d\ude00!") == "😀!"
    assert half_character(joined_surrogates("\ude00\ud83d")) == "\\ude00"


def test_half_a_character_is_not_written(tmp_path):
    with pytest.raises(PastoError, match="half a character"):
        write_text(tmp_path / "x", "caf\udce9")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", " \t", "\u00a0\u2009", "\u200b\u200d", "\ufeff"])
def test_blank(text):
    assert is_blank(text) and not is_blank(f"{text}x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "'a' is given twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": "\\ud83d"}', "\\ud83d, half a character"),
        ('{"\\ude00": 1}', "\\ude00, half a character"),
        ('{"a": 1', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_means_nothing_or_two_things(text, words):
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_json_objects():
    assert parse_json_object('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    with pytest.raises(ValueError, match="a JSON object is needed"):
        parse_json_object("[1]")
