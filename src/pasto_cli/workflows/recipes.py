"""`pasto recipes`: what ships with pasto, and a copy to work on."""

from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.recipe.load import load_recipe


class BundledRecipe(NamedTuple):
    """A recipe that ships with pasto."""

    name: str
    model: str
    description: str
    """The first comment line of its file."""


def listing() -> list[BundledRecipe]:
    """Every recipe that ships with pasto."""
    return [
        BundledRecipe(name, load_recipe(name).model.source, _description(bundled.recipe_text(name)))
        for name in bundled.recipes()
    ]


def copy(name: str, out: Path | None, force: bool) -> Path:
    """Write a recipe that ships with pasto to a file.

    Args:
        name: Such as `tiny` or `honesty/gemma-3-1b-it`.
        out: File, or folder that is there; None is the working folder.
        force: Replace a file.

    Returns:
        The file.

    Raises:
        PastoError: If there is no such recipe, the file exists, or it cannot be written.
    """
    text = bundled.recipe_text(name)
    path = out or Path()
    if path.is_dir():
        path = path / f"{Path(name).name}.yaml"
    if path.exists() and not force:
        raise PastoError(f"{path} exists", "Give --force to replace it, or --out for another file.")
    write_text(path, text)
    return path


def _description(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
