"""The English indefinite article of a word or phrase, by how its beginning sounds.

an honest, a dishonest, a European, an hour-long, a unanimous
an 8th-century, an 11-year-old, a 12-year-old     numbers as they are read
an X-rated, an SMS-savvy, a NATO-like             letters as they are read, or words
不诚实                                            other scripts take none
"""

import re
import unicodedata

_HAS_ONE = re.compile(r"(an?|the)\s", re.IGNORECASE)
_SOUNDS_VOWEL = re.compile(r"[aeiou]|hones|honou?r|hour|heir|hors d|y[bcdfgklmnprstvz]")
_SOUNDS_CONSONANT = re.compile(
    r"eu|ew|one(?![a-z])|once|ouija|u[bcfghjkqrstvx][aeiou](?<!uxo)|ukr|uy|unanim|unary|unesco"
    r"|uni(?!n|m(?!od)|d(?=e)|ll|ss)"
)
_NAMES_WITH_A_VOWEL = set("aefhilmnorsx")
"""Letters whose names begin with a vowel: ef, aitch, el, em, en, ar, ess, ex."""
_SHORT_WORDS = {"LAN", "MAC", "MAN", "RAM", "ROM", "SIM", "LOL", "LOX"}
"""Short acronyms that are read as words."""


def with_article(phrase: str) -> str:
    """`honest` -> `an honest`; a phrase keeps an article it has, and other scripts take none."""
    text = phrase.strip()
    if _HAS_ONE.match(text) or not takes_article(text):
        return text
    return f"{'an' if _begins_with_vowel(_beginning(text)) else 'a'} {text}"


def takes_article(phrase: str) -> bool:
    """Whether a phrase begins with a Latin letter or a number, as English does."""
    first = _beginning(phrase)[:1]
    return first.isdecimal() or (first.isalpha() and "LATIN" in unicodedata.name(first, ""))


def _beginning(phrase: str) -> str:
    """The phrase from its first letter or number on, letters without accents."""
    plain = unicodedata.normalize("NFKD", phrase)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    start = re.search(r"\w", plain)
    return plain[start.start() :] if start else ""


def _begins_with_vowel(text: str) -> bool:
    if text[0].isdecimal():
        return _number_begins_with_vowel(text)
    if found := re.match(r"[A-Za-z](?![A-Za-z])", text):  # X-rated, F1, T-shirt
        return _letter_begins_with_vowel(found[0])
    found = re.match(r"[A-Z]{2,}(?![a-rt-z])", text)
    if found and _is_spelled(found[0]):
        return _letter_begins_with_vowel(found[0])
    word = text.lower()
    if word[0] in "æœø":
        return True
    return bool(_SOUNDS_VOWEL.match(word)) and not _SOUNDS_CONSONANT.match(word)


def _letter_begins_with_vowel(letters: str) -> bool:
    return letters[0].lower() in _NAMES_WITH_A_VOWEL


def _is_spelled(capitals: str) -> bool:
    """Whether capitals are read letter by letter, as SMS is, and not as a word, as NATO is."""
    if len(capitals) <= 3:
        return capitals not in _SHORT_WORDS
    # As a word: consonants that English begins one with, then a vowel, and vowels further on.
    word = re.match(r"([BCFGKP][LR]|[DT]R|S[CHKLMNPTW]|[CTPSW]H|[^AEIOU])?[AEIOUY]", capitals)
    return not word or not re.search(r"[^AEIOUY][AEIOUY]|[AEIOU].*[^AEIOUY]", capitals)


def _number_begins_with_vowel(text: str) -> bool:
    """Whether a number is read with eight, eleven or eighteen first."""
    whole = re.match(r"\d+(?:[,\u202f\u00a0_]\d{3})*", text)
    assert whole, text
    digits = "".join(str(unicodedata.decimal(c)) for c in whole[0] if c.isdecimal())
    if digits.startswith("8"):
        return True
    # 11xx and 18xx without a comma are years, or eleven hundred.
    year = len(digits) == 4 == len(whole[0])
    leading = digits[: len(digits) % 3 or 3]
    return leading in ("11", "18") or (year and digits[:2] in ("11", "18"))
