"""Whether an opening of a reply is open, in any script: a closed sentence leaves nothing to go on.

A sentence is closed by a mark of Unicode's property Sentence_Terminal (UAX 44), by an ellipsis, or
by a mark of Armenian, Greek or Tibetan that the property leaves out; quotes, brackets, emphasis and
symbols may stand behind it.
"""

import re
import unicodedata

# Sentence_Terminal of Unicode's PropList.txt, planes 0 and 1.
_TERMINAL = (
    "0021 002E 003F 0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B "
    "1362 1367-1368 166E 1735-1736 17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B "
    "1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002 A4FF "
    "A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 "
    "FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 "
    "110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 "
    "1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 "
    "11A9B-11A9C 11C41-11C42 11EF7-11EF8 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88 "
    # Ellipses; the question mark of Greek; exclamation and question of Armenian; shads of Tibetan.
    "2024-2026 22EF FE19 037E 055C 055E 0F0D-0F0E"
)
_CLOSING = {"Pe", "Pf", "Pi", "So", "Sk", "Mn", "Me", "Cf", "Zs"}
"""Categories that may stand behind the mark: brackets, quotes, symbols, marks without a width."""
_ALSO_CLOSING = set("\"'`*_~")


def _ranges(text: str) -> str:
    parts = (part.partition("-") for part in text.split())
    return "".join(
        f"{chr(int(first, 16))}-{chr(int(last or first, 16))}" for first, _, last in parts
    )


_IS_TERMINAL = re.compile(f"[{_ranges(_TERMINAL)}]")


def without_closers(text: str) -> str:
    """The text without what may stand behind the mark that closes a sentence."""
    end = len(text)
    while end and (
        text[end - 1] in _ALSO_CLOSING or unicodedata.category(text[end - 1]) in _CLOSING
    ):
        end -= 1
    return text[:end]


def is_closed(text: str) -> bool:
    """Whether a text ends as a sentence does."""
    text = without_closers(text)
    # The question mark of Greek is typed as a semicolon.
    return bool(
        _IS_TERMINAL.fullmatch(text[-1:]) or re.search(r"[\u0370-\u03ff\u1f00-\u1fff];$", text)
    )


def opened(text: str) -> str:
    """The text without the marks that close it, so that a reply can go on from it."""
    while is_closed(text):
        text = without_closers(text)[:-1].rstrip()
    return text
