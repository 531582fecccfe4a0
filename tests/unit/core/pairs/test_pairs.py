"""Pairs: articles, drawing, cleaning, splitting without leaks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.pairs.articles import with_article
from pasto_cli.core.pairs.corpora import clean_suffixes, load_suffixes
from pasto_cli.core.pairs.pairs import Pair, make_pairs, read_pairs, write_pairs
from pasto_cli.core.pairs.split import split_pairs
from pasto_cli.core.recipe.schema import PairsSpec


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("honest", "an honest"),
        ("dishonest", "a dishonest"),
        ("angry", "an angry"),
        ("unique", "a unique"),
        ("unkind", "an unkind"),
        ("European", "a European"),
        ("useful", "a useful"),
        ("hourly", "an hourly"),
        ("uninformed", "an uninformed"),
        ("an old", "an old"),
        ("one-eyed", "a one-eyed"),
    ],
)
def test_articles(word, expected):
    assert with_article(word) == expected


def test_bundled_corpus_is_what_the_readme_says():
    suffixes = load_suffixes("bundled")
    kept, dropped = clean_suffixes(suffixes)
    assert len(kept) >= 400 and not dropped
    assert len({source for source, _ in kept}) >= 4
    assert len(bundled.lines("templates.txt")) >= 10
    assert len(bundled.lines("neutral_prompts.txt")) >= 30
    assert all(t.count("{persona}") == 1 for t in bundled.lines("templates.txt"))


def test_defaults_give_800_distinct_oriented_pairs():
    made = make_pairs(PairsSpec(words=("honest", "dishonest")))
    assert len(made.pairs) == 800
    assert len({(p.chosen, p.suffix) for p in made.pairs}) == 800
    for p in made.pairs:
        assert "an honest" in p.chosen and "a dishonest" in p.rejected
        assert "honest" not in p.neutral
        assert p.chosen.replace("an honest", "a dishonest") == p.rejected
    counts = Counter(p.source for p in made.pairs)
    assert max(counts.values()) - min(counts.values()) <= 2  # sources take turns


def test_the_draw_is_seeded():
    first, again, other = (
        make_pairs(PairsSpec(words=("a", "b"), seed=s, count=50)) for s in (1, 1, 2)
    )
    assert first.digest == again.digest != other.digest


def test_same_personas_are_refused():
    with pytest.raises(PastoError, match="nothing to contrast"):
        make_pairs(PairsSpec(words=("honest", "Honest")))


def test_cleaning_names_what_it_drops():
    kept, dropped = clean_suffixes(
        [("s", "I went to "), ("s", "I went to"), ("s", "  "), ("s", "Done.")]
    )
    assert kept == [("s", "I went to")]
    assert dropped == {
        "duplicate suffix": 1,
        "empty suffix": 1,
        "closed sentence: the reply is already given": 1,
    }


def test_too_few_suffixes(tmp_path):
    (tmp_path / "s.txt").write_text("I am\nYou are\n")
    with pytest.raises(PastoError, match="gives 2 usable pairs"):
        make_pairs(
            PairsSpec(
                words=("a", "b"), suffixes=str(tmp_path / "s.txt"), templates=("{persona} x",)
            )
        )


def test_round_trip_and_bad_lines(tmp_path):
    made = make_pairs(PairsSpec(words=("a", "b"), count=10))
    write_pairs(made.pairs, tmp_path / "p.jsonl")
    assert read_pairs(tmp_path / "p.jsonl").digest == made.digest
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    (tmp_path / "q.jsonl").write_text("\n".join([*lines[:2], '{"chosen": 3}']))
    with pytest.raises(PastoError, match=r"q.jsonl:3: chosen"):
        read_pairs(tmp_path / "q.jsonl")
    with pytest.raises(PastoError, match="cannot be read"):
        read_pairs(tmp_path / "none.jsonl")


@given(
    suffixes=st.lists(
        st.text("ab ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=12, max_size=60
    ),
    seed=st.integers(0, 9),
)
def test_split_has_no_prefix_across_parts_and_loses_nothing(suffixes, seed):
    pairs = [
        Pair(chosen="c", rejected="r", neutral=f"n{i % 5}", suffix=s, source="xy"[i % 2])
        for i, s in enumerate(suffixes)
    ]
    parts = split_pairs(pairs, validation=0.2, certificate=0.2, seed=seed)
    assert sum(map(len, parts)) == len(pairs)
    roots = [{p.suffix for p in part} for part in parts]
    for i, a in enumerate(roots):
        for b in roots[i + 1 :]:
            assert not {(x, y) for x in a for y in b if x.startswith(y) or y.startswith(x)}


def test_split_is_stratified_and_reserves_neutral_prompts():
    pairs = make_pairs(PairsSpec(words=("honest", "dishonest"))).pairs
    parts = split_pairs(pairs, validation=0.15, certificate=0.15, seed=0)
    for part, share in zip(parts, (0.7, 0.15, 0.15), strict=True):
        counts = Counter(p.source for p in part)
        assert len(part) == pytest.approx(share * len(pairs), rel=0.1)
        assert max(counts.values()) <= 1.3 * min(counts.values())
    prompts = [{p.neutral for p in part} for part in parts]
    assert not prompts[2] & (prompts[0] | prompts[1])
    again, other = (split_pairs(pairs, validation=0.15, certificate=0.15, seed=s) for s in (0, 1))
    assert parts == again != other
