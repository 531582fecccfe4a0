"""Recipes as files: YAML, `--set` overrides, and every mistake at once.

A mistake reads `file:line: key: what is wrong; what to write`. Line numbers come from the marks of
YAML nodes; pydantic's locations are walked along the same paths. Two traps: a location holds list
indexes as ints, and it holds the tag of a union, which does not stand in the file.
"""

import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from pydantic import BaseModel, ValidationError

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError, message_of
from pasto_cli.base.files import read_limited
from pasto_cli.base.marked_yaml import KeyPath, dotted, read_yaml
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.upgrade import RENAMED, upgrade_recipe

NOT_AS_MEANT = ("string_type", "not_a_number")
"""Pydantic's complaints that a bare word of YAML may be behind."""
LARGEST = 2**20
"""Largest size of a recipe, bytes."""


class RecipeError(PastoError):
    """A recipe with one or more mistakes; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(
            "\n".join(self.problems), "Keys, types and defaults: pasto recipe --schema"
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file, or the name of a recipe that ships with pasto; a file of that name wins.
        overrides: `key.key=value` each; the value is read as YAML.

    Returns:
        The validated recipe.

    Raises:
        RecipeError: With all mistakes of the file and of the overrides.
        PastoError: If the file cannot be read.
    """
    path = Path(path)
    try:
        text = _read_text(path)
    except FileNotFoundError:
        raise PastoError(f"{path}: no such recipe", _nearest(path)) from None
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read as a recipe ({error.strerror or error})",
            "Give a UTF-8 YAML file.",
        ) from None
    written, problems = _read_yaml(text, path)
    for override in overrides:
        problems += _apply_override(written, override)
    return _validate(written, problems)


def with_settings(recipe: Recipe, settings: Mapping[str, object]) -> Recipe:
    """A recipe with other values of some keys.

    Args:
        recipe: A valid one.
        settings: `section.key` -> value, as YAML would give it.

    Raises:
        RecipeError: With all mistakes that they make.
    """
    written = _Written(Path(recipe.name), recipe.model_dump(mode="json"), {}, {})
    problems: list[str] = []
    for key, value in settings.items():
        problems += _apply_override(written, f"{key}={json.dumps(value)}")
    return _validate(written, problems)


def load_stored_recipe(path: Path) -> Recipe:
    """Read a run's own recipe.yaml, which an earlier version of pasto may have written.

    Raises:
        RecipeError: If it is damaged.
        PastoError: If it cannot be read.
    """
    try:
        text = read_limited(path, LARGEST)
    except OSError as error:
        raise PastoError(
            f"{path}: cannot be read as a recipe ({error.strerror or error})",
            "Give the folder of another run.",
        ) from None
    written, problems = _read_yaml(text, path)
    return _validate(written._replace(data=upgrade_recipe(written.data)), problems)


def recipe_file(path: str | Path) -> Path:
    """The file that `load_recipe` reads for the same argument."""
    path = Path(path)
    known = bundled.recipes()
    if path.is_file() or path.as_posix() not in known:
        return path
    return Path(str(known[path.as_posix()]))


def _read_text(path: Path) -> str:
    if not path.is_file() and path.as_posix() in bundled.recipes():
        return bundled.recipe_text(path.as_posix())
    return read_limited(path, LARGEST)


def _nearest(path: Path) -> str:
    """What the user may have meant by a recipe that is not there."""
    beside = [file.name for file in path.parent.glob("*.y*ml")]
    if near := difflib.get_close_matches(path.name, beside, 1):
        return f"Did you mean {path.parent / near[0]}?"
    # A checkout has them as files: recipes/quickstart.yaml is quickstart.
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if near := difflib.get_close_matches(name, bundled.recipes(), 1):
        return f"Did you mean {near[0]}, which ships with pasto? All of them: pasto recipes ls"
    return "Recipes that ship with pasto: pasto recipes ls"


def dump_recipe(recipe: Recipe, ascii_only: bool = False) -> str:
    """Resolved recipe as YAML, every default written out.

    Args:
        recipe: A valid one.
        ascii_only: Write characters beyond ASCII as escapes.
    """
    data = recipe.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=not ascii_only)


class _Written(NamedTuple):
    """A recipe as it was written: before validation."""

    path: Path
    data: dict[str, Any]
    marks: dict[KeyPath, str]
    """Where each key stands: `file:line`, or the `--set` that gave it."""
    bare: dict[KeyPath, str]
    """What to write instead of a bare word that YAML reads as something else."""


def _read_yaml(text: str, path: Path) -> tuple[_Written, list[str]]:
    """The recipe in a YAML text, and problems such as a key given twice."""
    try:
        document = read_yaml(text, str(path))
    except PastoError as error:
        raise RecipeError([error.message]) from None
    data: Any = document.data
    if not isinstance(data, dict):
        raise RecipeError(
            [f"{path}:1: a recipe is a mapping of sections; write 'name: ...', 'model:', 'pairs:'"]
        )
    marks = {key: f"{path}:{place.line}" for key, place in document.places.items()}
    bare = {key: said for key in marks if (said := document.quote(key))}
    problems = [f"{path}:{line}: {_dotted(key)}: {said}" for line, key, said in document.problems]
    return _Written(path, cast("dict[str, Any]", data), marks, bare), problems


def _apply_override(written: _Written, override: str) -> list[str]:
    """Write one `a.b=value` into what was read from the file; returns problems."""
    key, equals, value = override.partition("=")
    place = f"--set {override}"
    if not equals or not key.strip():
        return [f"{place}: write --set section.key=value"]
    parts = key.strip().split(".")
    try:
        given = read_yaml(value, key)
    except PastoError as error:
        problem = error.message.partition("not valid YAML: ")[2]
        return [f"{place}: the value is not valid YAML; quote it ({problem})"]
    target, marks = written.data, written.marks
    for depth, part in enumerate(parts[:-1], 1):
        inner: Any = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            section = ".".join(parts[:depth])
            return [f"{place}: {section} is {inner!r} in the recipe, not a section; set it whole"]
        target = cast("dict[str, Any]", inner)
        marks.setdefault(tuple(parts[:depth]), place)
    target[parts[-1]] = given.data
    path = tuple(parts)
    # What stood below the key in the file is gone, and so are its lines.
    for known in [known for known in marks if known[: len(path)] == path]:
        del marks[known]
        written.bare.pop(known, None)
    marks[path] = place
    written.bare.update({(*path, *key): said for key in given.places if (said := given.quote(key))})
    return [f"{place}: {_dotted((*path, *key))}: {said}" for _, key, said in given.problems]


def _validate(written: _Written, problems: Sequence[str]) -> Recipe:
    """The recipe, or every problem of reading and of validation together."""
    try:
        recipe = Recipe.model_validate(written.data)
    except ValidationError as error:
        raise RecipeError(list(dict.fromkeys([*problems, *_wrong_keys(error, written)]))) from None
    if problems:
        raise RecipeError(problems)
    return recipe


def _wrong_keys(error: ValidationError, written: _Written) -> list[str]:
    """One line for each of pydantic's complaints that is about what the user meant."""
    problems: list[str] = []
    for item in error.errors(include_url=False):
        location, fits = _without_union_tags(item["loc"], written.data)
        if fits:
            place = _place(location, written)
            said = written.bare.get(location) if item["type"] in NOT_AS_MEANT else None
            problems.append(f"{place}: {_dotted(location)}: {said or _explain(item, location)}")
    return problems


def _without_union_tags(location: KeyPath, data: Any) -> tuple[KeyPath, bool]:
    """Drop the parts of a location that are union tags.

    Returns:
        The location in the file, and whether the tagged branch is the one that the value was meant
        for: a mapping for a model's branch, anything else for a scalar's.
    """
    path: list[str | int] = []
    model: Any = Recipe
    here: Any = data
    fits = True
    for part in location:
        branches = _branches(model)
        tags = {getattr(branch, "__name__", str(branch)): branch for branch in branches}
        if len(branches) > 1 and part in tags:
            model = tags[str(part)]
            fits = fits and _is_model(model) == isinstance(here, dict)
            continue
        model = next((b for b in branches if _is_model(b)), model)
        path.append(part)
        here = cast("dict[str, Any]", here).get(str(part)) if isinstance(here, dict) else None
        model = (
            model.model_fields[part].annotation
            if _is_model(model) and part in model.model_fields
            else None
        )
    return tuple(path), fits


def _branches(annotation: Any) -> tuple[Any, ...]:
    """The types of a union but None; the annotation itself where it is none."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(a for a in typing.get_args(annotation) if a is not type(None))
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _place(location: KeyPath, written: _Written) -> str:
    """Place of the nearest enclosing key that was written."""
    for end in range(len(location), -1, -1):
        if location[:end] in written.marks:
            return written.marks[location[:end]]
    return f"{written.path}:1"


def _dotted(location: KeyPath) -> str:
    return dotted(location) or "recipe"


def _fields_at(location: KeyPath) -> list[str]:
    """Names of the keys that the section at a location accepts."""
    model: Any = Recipe
    for part in location:
        if _is_model(model) and part in model.model_fields:
            model = next(
                (b for b in _branches(model.model_fields[str(part)].annotation) if _is_model(b)),
                None,
            )
    return list(model.model_fields) if _is_model(model) else []


def _explain(item: Any, location: KeyPath) -> str:
    """What is wrong and what to write, for one pydantic error."""
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        if now := RENAMED.get(_dotted(location)):
            return f"unknown key; it is called {now!r} now"
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
        return "unknown key; " + (
            f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        )
    if kind == "missing" and isinstance(location[-1], int):
        return f"required and missing; write {location[-1] + 1} values in the list"
    if kind == "missing":
        return f"required and missing; write '{location[-1]}: ...'"
    if kind == "literal_error":
        allowed = [a.strip("' ") for a in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(value), allowed, 1)
        return f"{value!r} is not allowed; " + (
            f"did you mean {near[0]!r}?" if near else f"write {' or '.join(allowed)}"
        )
    message = message_of(item)
    if kind == "value_error":
        return message
    if kind in ("model_type", "model_attributes_type"):
        return (
            f"must be a section of keys, not {value!r}; known are {', '.join(_fields_at(location))}"
        )
    return f"{message[0].lower()}{message[1:]}, not {value!r}"
