"""`pasto eval --benchmark sentiment`."""

import pytest

from pasto_cli.base import bundled
from tests.support.runs import change_evaluation
from tests.support.terminal import strict


def test_sentiment_writes_its_texts_and_prints_its_scores(pasto, project):
    said = pasto("eval", "-b", "sentiment", "--limit", 4)
    assert said.code == 0, said.err
    assert "n = 4 prompts" in said.out and "slope per unit of coefficient" in said.out
    assert f"every row: {project.run}/eval/sentiment.json\n" in said.out
    found = strict((project.run / "eval" / "sentiment.json").read_text())
    prompts = bundled.lines("sentiment_prompts.txt")[:4]
    assert [(t["prompt"], t["coefficient"]) for t in found["texts"]] == [
        (p, a) for p in prompts for a in (-1, 0, 1)
    ]
    assert found["scores"]["n_prompts"] == 4 and set(found["scores"]["coefficients"]) == {
        "-1",
        "0",
        "1",
    }


def test_sentiment_json_is_the_file(pasto, project):
    said = pasto("eval", "-b", "sentiment", "--limit", 2, "--coeffs=-2,2", "--json")
    found = strict(said.out)
    assert found == strict((project.run / "eval" / "sentiment.json").read_text())
    assert found["coefficients"] == [-2, 0, 2]


def test_sentiment_texts_are_those_that_generate_gives(pasto, project):
    texts = strict(pasto("eval", "-b", "sentiment", "--limit", 1, "--json").out)["texts"]
    options = ("-c", -1, "-c", 0, "-c", 1, "--max-new-tokens", 48, "--json")
    own = strict(pasto("generate", texts[0]["prompt"], *options).out)
    assert [t["text"] for t in texts] == [record["text"] for record in own]


@pytest.mark.parametrize(
    "option",
    [
        ("--baseline", "prompt"),
        ("--equal-kl",),
        ("--value", "honesty"),
        ("--label-sign", "original"),
        ("--data", "."),
    ],
    ids=lambda option: option[0],
)
def test_sentiment_passes_over_no_option(pasto, project, option):
    said = pasto("eval", "-b", "sentiment", *option)
    assert (said.code, said.out) == (1, "") and not (project.run / "eval").exists()
    assert said.error == f"error: {option[0]} does not go with --benchmark sentiment"
    assert "Leave" in said.next_step


def test_sentiment_can_be_the_recipes_benchmark(pasto, project):
    change_evaluation(project.run, benchmark="sentiment")
    said = pasto("eval", "--limit", 1, "--json")
    assert strict(said.out)["benchmark"] == "sentiment"
    said = pasto("eval", "--baseline", "prompt")
    assert (said.code, said.out) == (1, "") and "--baseline does not go with" in said.error
