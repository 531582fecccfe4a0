"""The model's own answers as pairs: what is asked, what is dropped, how they are split and kept."""

import json

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.core.pairs.answers import (
    MIN_QUESTIONS,
    AnswerPair,
    draw_asked,
    load_questions,
    read_answers,
    require_answers,
    split_answers,
    usable,
    write_answers,
)
from pasto_cli.core.pairs.openings import commonest_opening
from pasto_cli.core.pairs.pairs import Pair
from pasto_cli.core.recipe.schema import AnswersSpec

REFUSAL = (7, 7, 7, 7)


def a_pair(number, chosen=None, rejected=None, sample=0):
    """A pair whose answers open as no other does, unless told otherwise."""
    chosen = (100 + number, 1, 2, 3, 4) if chosen is None else chosen
    rejected = (500 + number, 1, 2, 3, 4) if rejected is None else rejected
    return AnswerPair(
        question=f"Question {number}?",
        personas=("Be good.", "Be bad."),
        sample=sample,
        chosen=" ".join(map(str, chosen)),
        rejected=" ".join(map(str, rejected)),
        chosen_tokens=chosen,
        rejected_tokens=rejected,
    )


def test_questions_are_of_a_file_without_doubles(tmp_path):
    assert len(load_questions("bundled")) >= 120
    file = tmp_path / "mine.txt"
    file.write_text("".join(f" What of {n}? \n\n" for n in [*range(10), 3]))
    assert load_questions(str(file)) == [f"What of {n}?" for n in range(10)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"One?\nTwo?\nOne?\n", "holds 2 different questions, at least 8"),
        (b"\n \n", "holds no questions"),
        (b"Caf\xe9?\n", ":1: byte 0xE9 is not UTF-8"),
    ],
)
def test_a_bad_file_of_questions_is_named(tmp_path, content, error):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(PastoError, match=error):
        load_questions(str(file))


def test_what_is_asked_is_seeded_and_uses_the_templates_of_the_pairs():
    pairs = [
        Pair(chosen=f"{t} good.", rejected=f"{t} bad.", neutral="Hi.", suffix=str(n))
        for n, t in enumerate(["Be", "Act", "Be"])
    ]
    questions = [f"Question {n}?" for n in range(20)]
    spec = AnswersSpec(count=12, samples=3, seed=1)
    asked = draw_asked(questions, pairs, spec)
    assert asked == draw_asked(questions, pairs, spec)
    assert asked != draw_asked(questions, pairs, spec.model_copy(update={"seed": 2}))
    assert len(asked) == 36 and len({one.question for one in asked}) == 12
    assert {one.personas for one in asked} == {("Be good.", "Be bad."), ("Act good.", "Act bad.")}
    positive, negative = asked[0].messages
    assert positive == f"{asked[0].personas[0]}\n\n{asked[0].question}"
    assert negative == f"{asked[0].personas[1]}\n\n{asked[0].question}"
    assert len(draw_asked(questions[:9], pairs, spec)) == 27  # all there are


def test_the_commonest_opening_stands_alone_or_not():
    assert commonest_opening([(1, 2), (3, 4)]).times == 0
    found = commonest_opening([(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (9,), (8,)])
    assert found == ((1, 2, 3, 4), 2)


def test_equal_and_empty_answers_are_dropped():
    pairs = [a_pair(n) for n in range(4)]
    pairs += [a_pair(4, (), (3,)), a_pair(5, (4,), ()), a_pair(6, (5, 6), (5, 6))]
    kept, dropped = usable(pairs)
    assert kept == pairs[:4]
    assert dropped == {"an answer is empty": 2, "both answers are the same": 1}


def test_a_refusal_of_both_poles_is_dropped_wherever_it_opens_an_answer():
    pairs = [a_pair(n) for n in range(10)]
    refused = [
        a_pair(10, rejected=(*REFUSAL, 1)),
        a_pair(11, rejected=(*REFUSAL, 2)),
        a_pair(12, chosen=(*REFUSAL, 3)),  # the other pole says it too, once
    ]
    kept, dropped = usable([*pairs, *refused])
    assert kept == pairs and dropped.total() == 3
    # Said by one pole alone, and seldom: an answer like any other.
    assert usable([*pairs, *refused[:2]])[0] == [*pairs, *refused[:2]]


def test_a_commonest_opening_of_one_pole_alone_is_dropped_from_half_of_its_answers_on():
    few = [a_pair(n, rejected=(*REFUSAL, n) if n < 4 else None) for n in range(10)]
    assert usable(few)[0] == few
    half = [a_pair(n, rejected=(*REFUSAL, n) if n < 5 else None) for n in range(10)]
    kept, dropped = usable(half)
    assert kept == half[5:] and dropped.total() == 5


def test_too_few_are_refused_with_the_figures_and_the_next_step():
    same = [a_pair(n, (1, n), (1, n)) for n in range(20)]
    kept, dropped = usable(same)
    with pytest.raises(PastoError) as error:
        require_answers(kept, dropped)
    assert "0 usable pairs of 20" in error.value.message
    assert "20 dropped: both answers are the same" in error.value.message
    assert "--screen" in error.value.hint
    few = [a_pair(n % 7, sample=n) for n in range(30)]
    with pytest.raises(PastoError, match="30 usable pairs of 30, to 7 questions"):
        require_answers(*usable(few))
    enough = [a_pair(n) for n in range(MIN_QUESTIONS)]
    require_answers(*usable(enough))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_question_is_trained_on_or_held_out(share):
    pairs = [a_pair(n, sample=s) for n in range(10) for s in range(2)]
    split = split_answers(pairs, share, seed=3)
    questions = [{pair.question for pair in part} for part in split]
    assert not questions[0] & questions[1] and len(questions[0] | questions[1]) == 10
    assert len(questions[1]) == {0.01: 2, 0.3: 3, 0.99: 9}[share]
    assert split == split_answers(pairs, share, seed=3)
    assert split != split_answers(pairs, share, seed=4) or share == 0.99


def test_what_is_written_is_read_again_and_named_by_its_hash(tmp_path):
    pairs = [a_pair(n) for n in range(8)]
    odd = a_pair(8).model_copy(update={"chosen": "line\u2028 \x85 \n\ud7ff \x00 \\"})
    split = split_answers([*pairs, odd], 0.25, seed=0)
    write_answers(split, tmp_path / "answers.jsonl")
    assert read_answers(tmp_path / "answers.jsonl") == split
    assert read_answers(tmp_path / "answers.jsonl").digest == split.digest
    assert split_answers(pairs, 0.25, seed=0).digest != split.digest
    assert split_answers([*pairs, odd], 0.25, seed=1).digest != split.digest


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "answers.jsonl:2: "),
        ("[]", "answers.jsonl:2: "),
        ("{}", "answers.jsonl:2: 'part'"),
        ('{"part": "train", "question": "Q?"}', "answers.jsonl:2: personas: Field required"),
        ('{"part": "other"}', "answers.jsonl:2: 'other'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, error):
    path = tmp_path / "answers.jsonl"
    good = json.dumps({**a_pair(0).model_dump(), "part": "train"})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(PastoError, match=error):
        read_answers(path)
    with pytest.raises(PastoError, match="cannot be read"):
        read_answers(tmp_path / "nowhere.jsonl")


def test_an_answer_that_names_its_persona_is_dropped():
    personas = ("You are an honest person.", "You are a dishonest person.")

    def pair(chosen, rejected):
        return AnswerPair(
            question="What now?",
            personas=personas,
            sample=0,
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=tuple(chosen.encode()),
            rejected_tokens=tuple(rejected.encode()),
        )

    naming = pair("As an honest person, I wait.", "Go home.")
    also = pair("Wait for the train.", "A dishonest person would not.")
    # Named later in the answer, or by words that both personas have, it is an answer like others.
    fine = pair("Stay here, since it pays in the long run to be honest.", "You are a fool to wait.")
    kept, dropped = usable([naming, also, fine])
    assert kept == [fine] and dropped == {"an answer names its persona": 2}
