"""Words as they sound and sentences as they end."""

import pytest

from pasto_cli.core.pairs.articles import takes_article, with_article
from pasto_cli.core.pairs.sentences import is_closed, opened

RIGHT = """
an honest, a humble, an hourly, a European, a one-sided, a unanimous, an unafraid, a unique,
an unimportant, an unintended, a useful, an usher, a Ukrainian, a Ugandan, an umami-rich, an éclair,
a yes-saying, an 8, an 80%, an 8.5, a 1, a 12-year-old, an 11th-hour, a 110, an 11,000, an 18+,
an 1800s, a 180, a 1980s, a 0.8, an X-rated, an x-ray, an F1, a T-shirt, a U-turn, an e-mail,
an SMS-loving, an LLM, a NASA-funded, a NATO, an FBI, an MBA, a UN, a UK, an EU, a UNESCO, an HTML,
a URL, a RAM-hungry, an MP3, an N95, a CEO, an HONEST, a DISHONEST, an HIV-positive, a PhD, a B2B
"""


@pytest.mark.parametrize("right", [part.strip() for part in RIGHT.replace("\n", " ").split(", ")])
def test_articles(right):
    assert with_article(right.split(" ", 1)[1]) == right


@pytest.mark.parametrize("word", ["诚实", "честный", "צודק", "ειλικρινής", "—"])
def test_other_scripts_take_none(word):
    assert with_article(word) == word and not takes_article(word)


@pytest.mark.parametrize(
    "text",
    [
        *("是的。", "نعم؟", "हाँ।", "はい！」", "So…", 'She said "so."', "(Yes!)", "**Done.**"),
        *("Fine. 🙂", "Τι;", "አዎ።", "Այո։", "ok.\u200f", "Well...", "no?'"),
    ],
)
def test_closed_sentences(text):
    assert is_closed(text) and not is_closed(opened(text))


@pytest.mark.parametrize(
    "text",
    ["The thing is", "As (we) know (well)", "He said: “", "Well,", "a;", "我认为", "🙂", "—"],
)
def test_open_beginnings(text):
    assert not is_closed(text) and opened(text) == text
