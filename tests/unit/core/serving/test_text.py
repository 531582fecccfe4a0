"""Text as it comes: the pieces are the decoded whole, up to a stop text; nothing is taken back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pasto_cli.core.models.random_models import byte_tokenizer
from pasto_cli.core.serving.engine import TokenLogprob
from pasto_cli.core.serving.text import TextWriter

TOKENIZER = byte_tokenizer()
WORDS = st.text("aé日🙂 b", max_size=12).map(lambda text: TOKENIZER(text)["input_ids"])
BROKEN = st.lists(st.integers(0, 258), max_size=4)
"""Bytes that are no characters, and special tokens."""
IDS = st.lists(st.one_of(WORDS, BROKEN), max_size=5).map(lambda parts: sum(parts, []))


def written(ids, stop=()):
    """Pieces of a text, the last of them from `finish`."""
    writer = TextWriter(TOKENIZER, stop)
    pieces = []
    for place, token in enumerate(ids):
        pieces.append(writer.push(token, TokenLogprob(str(place), 0.0)))
        if writer.stopped:
            break
    return [*pieces, writer.finish()], writer


@settings(deadline=None)
@given(IDS)
def test_pieces_are_the_whole(ids):
    pieces, _ = written(ids)
    assert "".join(p.text for p in pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert [int(t.token) for p in pieces for t in p.tokens] == list(range(len(ids)))


@settings(deadline=None)
@given(WORDS, st.lists(st.text("aé日🙂 b", min_size=1, max_size=3), min_size=1, max_size=2))
def test_a_text_ends_before_the_first_stop_text(ids, stop):
    whole = TOKENIZER.decode(ids)
    pieces, writer = written(ids, stop)
    places = [whole.find(text) for text in stop if text in whole]
    assert "".join(p.text for p in pieces) == (whole[: min(places)] if places else whole)
    assert writer.stopped == bool(places)


@given(st.text("aé日🙂 b", min_size=1, max_size=12))
def test_a_character_goes_out_with_its_last_token(text):
    sent = ""
    writer = TextWriter(TOKENIZER)
    for character in text:
        *first, last = TOKENIZER(character)["input_ids"]
        assert all(writer.push(token).text == "" for token in first)
        sent += writer.push(last).text
        assert sent.endswith(character)


def test_logprobs_go_with_the_text_of_their_tokens():
    pieces, _ = written(TOKENIZER("ab--cd")["input_ids"], ["--"])
    assert [t.token for p in pieces for t in p.tokens] == ["0", "1"]
    pieces, _ = written(TOKENIZER("ab-cd")["input_ids"], ["--"])
    assert [p.text for p in pieces] == ["a", "b", "", "-c", "d", ""]
    assert [len(p.tokens) for p in pieces] == [1, 1, 0, 2, 1, 0]


def test_the_space_of_a_first_word_is_not_lost():
    """Tokenizers of the sentencepiece kind drop the space of the first token that they decode."""

    class Pieces:
        def decode(self, ids, skip_special_tokens):
            return " ".join(f"w{i}" for i in ids)

    writer = TextWriter(Pieces())
    assert "".join(writer.push(i).text for i in (1, 2, 3, 4)) == "w1 w2 w3 w4"
