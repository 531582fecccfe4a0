"""Text that ships inside the package: suffixes, templates, neutral prompts, benchmarks, recipes."""

import difflib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited
from pasto_cli.base.paths import expanded
from pasto_cli.base.text import is_blank

LARGEST = 2**28
"""Bytes of a text file of the user's."""
_DATA = resources.files("pasto_cli") / "data"
_CHECKOUT = Path(__file__).parents[3]


def text(name: str) -> str:
    """A bundled text file, such as `templates.txt`."""
    return (_DATA / name).read_text(encoding="utf-8")


def lines(name: str) -> list[str]:
    """Lines of a bundled text file, such as `templates.txt`."""
    return text(name).splitlines()


def files(folder: str, ending: str) -> Iterator[Traversable]:
    """Bundled files of a folder, by name."""
    yield from sorted(
        (f for f in (_DATA / folder).iterdir() if f.name.endswith(ending)), key=lambda f: f.name
    )


def recipes() -> dict[str, Traversable]:
    """Recipes that ship with pasto, by name, such as `tiny` or `honesty/gemma-3-1b-it`."""
    installed = _DATA / "recipes"
    # An editable installation has them where they are edited, at the top of the checkout.
    folder = installed if installed.is_dir() else _CHECKOUT / "recipes"
    return dict(_recipes(folder, "")) if folder.is_dir() else {}


def recipe_text(name: str) -> str:
    """Text of a recipe that ships with pasto.

    Raises:
        PastoError: If none has that name.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise PastoError(
            f"{name}: no recipe of that name ships with pasto",
            f"Did you mean {near[0]}?" if near else "All of them: pasto recipes ls",
        )
    return known[name].read_text(encoding="utf-8")


def _recipes(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    """Names and files below a folder; the files of a folder come before its subfolders."""
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        if entry.is_dir():
            yield from _recipes(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry


def read_lines(path: str, what: str, blank: bool = False) -> list[str]:
    """Lines of a user's text file.

    Args:
        path: The file.
        what: What stands in it, for messages.
        blank: Keep blank lines too, so that lines can be counted.

    Raises:
        PastoError: If the file is missing, unreadable or empty.
    """
    try:
        text = read_limited(expanded(path), LARGEST)
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read as {what} ({error.strerror or error})",
            "Give a UTF-8 text file with one entry per line.",
        ) from None
    # Not splitlines: it would also cut at U+2028, which an entry may hold.
    found = text.split("\n")
    if all(map(is_blank, found)):
        raise PastoError(f"{path}: holds no {what}", "Write one entry per line.")
    return found if blank else [line for line in found if not is_blank(line)]
