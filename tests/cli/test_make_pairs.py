"""`pasto make-pairs`."""

from pasto_cli.core.pairs.pairs import read_pairs
from tests.support.terminal import TINY, strict


def test_make_pairs_from_two_words(pasto, tmp_path):
    said = pasto("make-pairs", "honest", "dishonest")
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    assert len(pairs) == 800
    assert all(
        "an honest" in p.chosen and "a dishonest" in p.rejected and "honest" not in p.neutral
        for p in pairs
    )
    assert all(p.chosen.replace("an honest", "a dishonest") == p.rejected for p in pairs)
    for heading in (
        "chosen (+1)",
        "rejected (-1)",
        "neutral",
        "opening of the reply",
        "words of the opening",
    ):
        assert heading in said.out
    for source in {p.source for p in pairs}:
        assert source in said.out
    assert pairs[0].suffix.split()[0] in said.out  # the preview shows the pairs themselves
    assert "800 pairs in pairs.jsonl; none dropped" in said.out


def test_make_pairs_takes_persona_phrases_as_they_stand(pasto, tmp_path):
    said = pasto(
        "make-pairs", "--personas", "a cheerful, joyful", "a gloomy, miserable", "--count", 20
    )
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    assert len(pairs) == 20
    assert all(
        p.chosen.count("a cheerful, joyful") == 1 and p.rejected.count("a gloomy, miserable") == 1
        for p in pairs
    )


def test_make_pairs_from_own_openings_and_templates(pasto, tmp_path):
    openings = [f"On day {n} the captain wrote" for n in range(12)]
    (tmp_path / "ship.txt").write_text(
        "\n".join([*openings, "A closed sentence.", openings[0], "", "   "]) + "\n"
    )
    (tmp_path / "templates.txt").write_text("Be {persona} sailor.\nSpeak as {persona} cook.\n")
    said = pasto(
        "make-pairs",
        "kind",
        "cruel",
        "--suffixes",
        "ship.txt",
        "--templates",
        "templates.txt",
        "--out",
        "own.jsonl",
    )
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "own.jsonl").pairs
    assert {p.suffix for p in pairs} == set(openings)
    assert {p.chosen for p in pairs} == {"Be a kind sailor.", "Speak as a kind cook."}
    assert {p.source for p in pairs} == {"ship"}
    assert "dropped 1: closed sentence" in said.out and "dropped 1: duplicate suffix" in said.out
    assert f"{len(pairs)} pairs in own.jsonl" in said.out and "none dropped" not in said.out
    assert not (tmp_path / "pairs.jsonl").exists()


def test_make_pairs_draws_by_seed(pasto, tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert (
            pasto(
                "make-pairs", "honest", "dishonest", "--count", 30, "--seed", seed, "--out", out
            ).code
            == 0
        )
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_make_pairs_json(pasto, tmp_path):
    said = pasto("make-pairs", "honest", "dishonest", "--count", 40, "--json")
    found = strict(said.out)
    pairs = read_pairs(tmp_path / found["file"]).pairs
    assert found["pairs"] == len(pairs) == sum(found["sources"].values()) == 40
    assert {k: len(v) for k, v in found["lengths"].items()} == found["sources"]
    assert sorted(sum(found["lengths"].values(), [])) == sorted(
        len(p.suffix.split()) for p in pairs
    )
    assert found["dropped"] == {}


def test_make_pairs_measures_with_a_models_tokenizer(pasto, tmp_path):
    from pasto_cli.core.models.chat import tokenise_pairs
    from pasto_cli.core.models.loading import load_chat
    from pasto_cli.core.recipe.schema import ModelSpec

    words = ("make-pairs", "honest", "dishonest", "--count", 16, "--model", "random:llama")
    found = strict(pasto(*words, "--json").out)
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    tokens, dropped = tokenise_pairs(pairs, load_chat(ModelSpec(source="random:llama")))
    assert not dropped
    assert sorted(sum(found["lengths"].values(), [])) == sorted(len(t.chosen) for t in tokens)
    assert found["length_unit"].startswith("tokens")
    assert "tokens of the chosen side" in pasto(*words, "--force").out


def test_make_pairs_from_a_recipe(pasto, tmp_path):
    said = pasto(
        "make-pairs",
        "--recipe",
        TINY,
        "--count",
        10,
        "--set",
        "pairs.words=[brave, timid]",
        "--json",
    )
    found = strict(said.out)
    assert found["pairs"] == 10 and found["length_unit"].startswith(
        "tokens"
    )  # the recipe names a model
    assert all(
        "a brave" in p.chosen and "a timid" in p.rejected
        for p in read_pairs(tmp_path / "pairs.jsonl").pairs
    )


def test_make_pairs_replaces_nothing_unless_forced(pasto, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    said = pasto("make-pairs", "honest", "dishonest")
    assert (
        (said.code, said.out) == (1, "")
        and "pairs.jsonl exists" in said.error
        and "--force" in said.next_step
    )
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"
    assert pasto("make-pairs", "honest", "dishonest", "--count", 9, "--force").code == 0
    assert len(read_pairs(tmp_path / "pairs.jsonl").pairs) == 9
