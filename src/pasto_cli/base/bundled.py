"""Text that ships inside the package: suffixes, templates, neutral prompts, benchmarks."""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from pasto_cli.base.errors import PastoError

_DATA = resources.files("pasto_cli") / "data"


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


def read_lines(path: str, what: str) -> list[str]:
    """Non-empty lines of a user's text file.

    Raises:
        PastoError: If the file is missing, unreadable or empty.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PastoError(
            f"{path}: cannot be read as {what} ({error})",
            "Give a UTF-8 text file with one entry a line.",
        ) from None
    if not found:
        raise PastoError(f"{path}: holds no {what}", "Write one entry a line.")
    return found
