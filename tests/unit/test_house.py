"""The house: what keeps it readable, as figures that a change must not pass by accident."""

import ast
import tomllib

import pytest

from tests.support.terminal import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def is_command(path, function: ast.FunctionDef) -> bool:
    """Whether a function is a verb of the command line: its signature is its documentation."""
    return path.parent.name == "cli" and function.name.strip("_") == path.stem.strip("_")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT / "src").as_posix())
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_FILE
    assert "fmt: skip" not in text and "fmt: off" not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Signature and docstring of a command are what `--help` shows.
            start = node.body[1].lineno if is_command(path, node) else node.lineno
            assert node.end_lineno - start < LONGEST_FUNCTION, node.name


def test_the_contract_names_folders_only():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = config["tool"]["importlinter"]["contracts"]
    rooms = [room.strip() for layer in contract["layers"] for room in layer.split("|")]
    files = [room for room in rooms if not (ROOT / "src" / room.replace(".", "/")).is_dir()]
    # The two ends of the package are single files: the command and the Python interface.
    assert files == ["pasto_cli.__main__", "pasto_cli.api"]
    assert contract["type"] == "layers" and len(contract["layers"]) <= 10


def test_every_room_stands_in_a_layer():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = config["tool"]["importlinter"]["contracts"]
    rooms = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
    package = ROOT / "src" / "pasto_cli"
    folders = {p.parent.relative_to(ROOT / "src") for p in package.rglob("__init__.py")}
    for folder in folders - {package.relative_to(ROOT / "src")}:
        name = ".".join(folder.parts)
        assert name == "pasto_cli.core" or any(
            name == room or name.startswith(f"{room}.") for room in rooms
        ), name


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < 9 * 1024
