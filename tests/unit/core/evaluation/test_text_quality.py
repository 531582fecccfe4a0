"""Does text still read? By hand, and by laws."""

from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.evaluation.text_quality import Answer, faults, quality, repeated_runs
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec

SPEC = CalibrationSpec()
GOOD = [
    Answer("The sea is wide and blue, and ships cross it every day.", 14),
    Answer("My city has a river, two bridges and a market.", 64),
    Answer("Bread is made of flour, water, salt and time.", 12),
]


def test_good_text_has_no_faults():
    base = quality(GOOD, 64)
    assert (base.repeated, base.alike, base.n) == (0, 0.0, 3)
    assert abs(base.ended - 2 / 3) < 1e-12
    assert faults(base, base, SPEC) == []


def test_each_way_to_fall_apart_is_named():
    base = quality(GOOD, 64)
    loop = quality([Answer("I am so very happy to be here today. " * 4, 64)] * 3, 64)
    # Of three answers one more or less is chance.
    assert "answers end" not in " ".join(faults(loop, base, SPEC))
    base, loop = (x.model_copy(update={"n": 12}) for x in (base, loop))
    found = " ".join(faults(loop, base, SPEC))
    assert "distinct words" in found and "answers loop" in found
    assert "0% of the answers end" in found and "begin alike" in found
    refusal = quality([Answer(f"I'm sorry, but I can't talk about {x}.", 9) for x in "abc"], 64)
    assert faults(refusal, base, SPEC) == ["100% of the answers begin alike, base 0%"]


def test_repeated_runs_by_hand():
    eight = "a b c d e f g h"
    assert repeated_runs(eight) == 0
    assert repeated_runs(f"{eight} {eight}") == 1
    assert repeated_runs(f"{eight} x {eight.upper()}") == 1
    assert repeated_runs("la " * 10) == 2  # three runs of eight, two of them said before


@given(st.lists(st.text(alphabet="abc ", max_size=60), min_size=1, max_size=5))
def test_laws(texts):
    answers = [Answer(t, 3) for t in texts]
    found = quality(answers, 8)
    assert 0 <= found.distinct <= 1 and 0 <= found.alike <= 1 and found.ended == 1.0
    assert faults(found, found, SPEC) == []
    doubled = quality([Answer(f"{t} {t}", 3) for t in texts], 8)
    assert doubled.repeated >= found.repeated and doubled.distinct <= found.distinct + 1e-12
