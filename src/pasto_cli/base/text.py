"""Bytes that people's tools wrote, as text: the one place that knows about encodings.

Editors on Windows put a byte order mark before UTF-8, and UTF-16 and UTF-32 are told by theirs: it
is taken off. Files that were joined hold one at the beginning of a line too. All line ends become
line feeds. Other encodings cannot be told from each other by their bytes and are never guessed: the
line and the way out are named.
"""

import codecs
import re
import unicodedata
from typing import Any, cast

from pasto_cli.base.errors import PastoError

_MARKS = (
    # UTF-32 first: its mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK = "\ufeff"
_HALF = re.compile("[\ud800-\udfff]")


class NotText(PastoError, ValueError):
    """Bytes that are no text; a ValueError too, for readers that pass over a damaged file."""

    def __str__(self) -> str:
        return self.message  # one line, since such readers put it into a line of their own


def decode_text(raw: bytes, name: str) -> str:
    """Bytes of a file as text, without a byte order mark, with line feeds as line ends.

    Args:
        raw: UTF-8, or UTF-16 or UTF-32 that say so with a mark.
        name: Where they come from, for the message.

    Raises:
        NotText: With the line, what it holds, and the way out.
    """
    encoding = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        # A byte order mark before UTF-8 does not count in the place of an error.
        before = raw.removeprefix(codecs.BOM_UTF8)[: error.start]
        raise _not_utf8(before, raw, error, name, encoding) from None
    text = text.removeprefix(_MARK).replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace(f"\n{_MARK}", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise NotText(
            f"{name}:{line}: holds NUL characters: UTF-16 without a byte order mark, or no text",
            _convert("UTF-16", name),
        )
    return text


def _not_utf8(
    before: bytes, raw: bytes, error: UnicodeDecodeError, name: str, encoding: str
) -> NotText:
    """What is wrong with bytes that are not in the encoding that they should be in."""
    if encoding in ("utf-16", "utf-32"):
        return NotText(
            f"{name}: begins as {encoding.upper()}, but is not whole ({error.reason})",
            "Save it again as UTF-8.",
        )
    ends = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found = f"byte 0x{error.object[error.start]:02X}"
    if raw.count(0) > len(raw) // 8:
        return NotText(
            f"{name}:{ends.count(10) + 1}: {found} is not UTF-8: this looks like UTF-16 without a "
            f"byte order mark, or is no text",
            _convert("UTF-16", name),
        )
    return NotText(
        f"{name}:{ends.count(10) + 1}: {found} is not UTF-8 (Latin-1 or Windows-1252?)",
        _convert("WINDOWS-1252", name),
    )


def _convert(encoding: str, name: str) -> str:
    return f"Save it as UTF-8, for instance: iconv -f {encoding} -t UTF-8 '{name}' > utf8.txt"


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, and marks without a width."""
    return all(c.isspace() or unicodedata.category(c) in ("Cf", "Cc") for c in text)


def half_character(text: str) -> str | None:
    """The escape of the first lone surrogate of a text: half a character, which no encoding takes.

    Texts get them from JSON and YAML that were cut between two escapes, and from bytes that are not
    UTF-8 on a command line.
    """
    found = _HALF.search(text)
    return f"\\u{ord(found[0]):04x}" if found else None


def joined_surrogates(text: str) -> str:
    """The text with every pair of surrogates as the one character that it stands for."""
    if half_character(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def half_character_in(data: Any) -> str | None:
    """The first lone surrogate in the texts and keys of nested lists and mappings."""
    if isinstance(data, str):
        return half_character(data)
    if isinstance(data, dict):
        inner = [*cast("dict[Any, Any]", data).items()]
    else:
        inner = cast("list[Any]", data) if isinstance(data, list | tuple) else []
    return next((half for each in inner if (half := half_character_in(each))), None)
