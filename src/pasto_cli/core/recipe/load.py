"""Recipes as files: reading YAML, `--set` overrides, and every mistake at once as `file:line: key:
what; what to write`.

Line numbers come from the marks of `yaml.compose`; pydantic's locations are walked along the same
paths. Two traps: a location holds list indexes as ints, and holds the tag of a union, which does
not stand in the file."""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import read_limited
from pasto_cli.base.safe_yaml import PlainLoader
from pasto_cli.core.recipe.schema import Recipe

KeyPath = tuple[str | int, ...]
LARGEST = 2**20
"""Bytes of a recipe."""


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
        path: YAML file.
        overrides: `key.key=value` each; the value is read as YAML.

    Returns:
        The validated recipe.

    Raises:
        RecipeError: With all mistakes of the file and of the overrides.
        PastoError: If the file cannot be read.
    """
    path = Path(path)
    try:
        text = read_limited(path, LARGEST)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        hint = (
            f"Did you mean {path.parent / near[0]}?"
            if near
            else "Recipes that ship with pasto are in recipes/."
        )
        raise PastoError(f"{path}: no such recipe", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PastoError(
            f"{path}: cannot be read as a recipe ({error})", "Give a UTF-8 YAML file."
        ) from None
    data, marks, problems = _read_yaml(text, path)
    for override in overrides:
        problems += _apply_override(data, marks, override)
    if problems:
        # Go on to validation so that all mistakes are seen together.
        problems += _validation_problems(data, marks, path)[1]
        raise RecipeError(problems)
    recipe, problems = _validation_problems(data, marks, path)
    if recipe is None:
        raise RecipeError(problems)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[KeyPath, str], list[str]]:
    """Plain data, the place (`file:line`) of every key path, and problems such as a key given
    twice."""
    try:
        root = yaml.compose(text, Loader=PlainLoader)
        data = yaml.load(text, Loader=PlainLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            [f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]
        ) from None
    except (RecursionError, ValueError, LookupError) as error:  # nesting, impossible dates
        raise RecipeError([f"{path}: not a recipe: {error}"]) from None
    if not isinstance(data, dict):
        raise RecipeError(
            [f"{path}:1: a recipe is a mapping of sections; write 'name: ...', 'model:', 'pairs:'"]
        )
    marks: dict[KeyPath, str] = {(): f"{path}:1"}
    problems: list[str] = []

    def walk(node: yaml.Node | None, prefix: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                place = f"{path}:{key.start_mark.line + 1}"
                if key.value in seen:
                    problems.append(
                        f"{place}: {_dotted((*prefix, key.value))}: given twice; keep one"
                    )
                seen.add(key.value)
                marks[(*prefix, key.value)] = place
                walk(value, (*prefix, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                marks[(*prefix, index)] = f"{path}:{value.start_mark.line + 1}"
                walk(value, (*prefix, index))

    walk(root, ())
    return data, marks, problems


def _apply_override(data: dict[str, Any], marks: dict[KeyPath, str], override: str) -> list[str]:
    """Write one `a.b=value` into the raw mapping; returns problems."""
    key, equals, value = override.partition("=")
    place = f"--set {override}"
    if not equals or not key.strip():
        return [f"{place}: write --set section.key=value"]
    parts = key.strip().split(".")
    try:
        parsed = yaml.load(value, Loader=PlainLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, LookupError):
        return [f"{place}: the value is not valid YAML; quote it"]
    target = data
    for depth, part in enumerate(parts[:-1]):
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            return [
                f"{place}: {'.'.join(parts[: depth + 1])} is {inner!r} in the recipe, not a "
                f"section; set it whole"
            ]
        target = inner
        marks.setdefault(tuple(parts[: depth + 1]), place)
    target[parts[-1]] = parsed
    path = tuple(parts)
    for known in [known for known in marks if known[: len(path)] == path]:
        del marks[known]
    marks[path] = place
    return []


def _validation_problems(
    data: dict[str, Any], marks: dict[KeyPath, str], path: Path
) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            location, fits = _without_union_tags(item["loc"], data)
            if fits:
                problems.append(
                    f"{_place(location, marks, path)}: {_dotted(location)}: "
                    f"{_explain(item, location)}"
                )
        return None, list(dict.fromkeys(problems))


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
        here = here.get(part) if isinstance(here, dict) else None
        model = (
            model.model_fields[part].annotation
            if _is_model(model) and part in model.model_fields
            else None
        )
    return tuple(path), fits


def _branches(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(a for a in typing.get_args(annotation) if a is not type(None))
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _place(location: KeyPath, marks: dict[KeyPath, str], path: Path) -> str:
    """Place of the nearest enclosing key that stands in the file."""
    for end in range(len(location), -1, -1):
        if location[:end] in marks:
            return marks[location[:end]]
    return f"{path}:1"


def _dotted(location: KeyPath) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "recipe"


def _fields_at(location: KeyPath) -> list[str]:
    """Names of the keys that the section at a location takes."""
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
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
        return "unknown key; " + (
            f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        )
    if kind == "missing":
        return f"required and missing; write '{location[-1]}: ...'"
    if kind == "literal_error":
        allowed = [a.strip("' ") for a in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(value), allowed, 1)
        return f"{value!r} is not allowed; " + (
            f"did you mean {near[0]!r}?" if near else f"write {' or '.join(allowed)}"
        )
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind in ("model_type", "model_attributes_type"):
        return (
            f"must be a section of keys, not {value!r}; known are {', '.join(_fields_at(location))}"
        )
    return f"{message[0].lower()}{message[1:]}, not {value!r}"
