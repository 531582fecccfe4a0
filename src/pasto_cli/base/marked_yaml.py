"""YAML that people write by hand: its data, and where each value stands.

YAML 1.1 reads bare words as something else: `no` is false, `012` is ten, `12:30:00` is 45000,
`2024-01-01` is a date. Where a text was wanted, `quote` says what happened and what to write. A key
that is given twice, and whole numbers that are not what they look like, are mistakes wherever they
stand.
"""

import re
from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import yaml

from pasto_cli.base.errors import PastoError
from pasto_cli.base.safe_yaml import PlainLoader

KeyPath = tuple[str | int, ...]
_DISGUISED = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")
"""Octal and base-60 numbers of YAML 1.1."""


class Place(NamedTuple):
    """Where a value stands."""

    line: int
    """Counted from 1: that of its key in a mapping, its own in a list."""
    plain: str | None = None
    """What was written, for a value without quotes."""


class Document(NamedTuple):
    """A YAML text, read."""

    data: Any
    places: dict[KeyPath, Place]
    """Of every key and element, and of the document itself at ()."""
    problems: list[tuple[int, KeyPath, str]]
    """Line, key and what is wrong."""

    def nearest(self, location: KeyPath) -> Place | None:
        """The place of a value, or of the nearest one around it that was written."""
        ends = range(len(location), -1, -1)
        return next((p for end in ends if (p := self.places.get(location[:end]))), None)

    def quote(self, location: KeyPath) -> str | None:
        """What to write instead of a bare word that is no text; None for what is something else."""
        place = self.places.get(location)
        if place is None or place.plain is None:
            return None
        return reading(place.plain)


def dotted(location: KeyPath) -> str:
    """A location as users write it: `pairs.templates[2]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def reading(plain: str) -> str | None:
    """`YAML reads no as false; quote it: 'no'`; None for a word that is read as itself."""
    try:
        value = yaml.load(plain, Loader=PlainLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(value, bool | int | float | date):
        return None
    if isinstance(value, date):
        what = "a date"
    elif isinstance(value, bool):
        what = str(value).lower()
    else:
        what = "a number" if str(value) == plain else f"the number {value}"
    return f"YAML reads {plain} as {what}; quote it: '{plain}'"


def read_yaml(text: str, name: str) -> Document:
    """Read a YAML document.

    Args:
        text: Of the file.
        name: Of the file, for messages.

    Raises:
        PastoError: If it is no YAML, with the line.
    """
    document = Document(None, {}, [])
    try:
        loader: Any = PlainLoader(text)
        root = loader.get_single_node()
        document.places[()] = Place(1, None if root is None else _plain(root))
        if root is not None:
            _mark(root, (), document)  # first: constructing unfolds merge keys in place
            document = document._replace(data=loader.construct_document(root))
    except yaml.reader.ReaderError as error:  # a control character; it knows no line
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise PastoError(
            f"{name}:{line}: not valid YAML: the character U+{code:04X} is not allowed"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error)
        raise PastoError(f"{where}: not valid YAML: {' '.join(problem.split())}") from None
    except (RecursionError, ValueError, LookupError) as error:  # nesting
        raise PastoError(f"{name}: not valid YAML: {error}") from None
    return document


def _mark(node: yaml.Node, prefix: KeyPath, document: Document) -> None:
    """Note where every value below a node stands, and what is wrong with it."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here, line = (*prefix, str(key.value)), key.start_mark.line + 1
            if here[-1] in seen:
                document.problems.append((line, here, "given twice; keep one"))
            seen.add(str(key.value))
            document.places[here] = Place(line, _plain(value))
            _mark(value, here, document)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*prefix, index)
            document.places[here] = Place(value.start_mark.line + 1, _plain(value))
            _mark(value, here, document)
    elif (plain := _plain(node)) and _DISGUISED.fullmatch(plain):
        line = document.places[prefix].line
        document.problems.extend((line, prefix, found) for found in _disguised(node, plain))


def _plain(node: yaml.Node) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None


def _disguised(node: yaml.Node, plain: str) -> Iterator[str]:
    if node.tag.endswith((":int", ":float")) and (said := reading(plain)):
        yield said
