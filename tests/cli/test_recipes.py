"""`pasto recipes`, recipes by name, `pasto --version`, and the wheel that they travel in."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pasto_cli
from pasto_cli.base import bundled
from pasto_cli.core.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    for path in (ROOT / "recipes").rglob("*.yaml")
)


def test_version_is_written_once(pasto):
    said = pasto("--version")
    assert (said.code, said.out) == (0, f"pasto {pasto_cli.__version__}\n")
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_ls_has_a_line_for_every_recipe(pasto):
    said = pasto("recipes", "ls")
    lines = said.out.splitlines()
    assert said.code == 0
    assert sorted(line.split()[0] for line in lines) == RECIPES
    assert all(re.fullmatch(r"\S+  +\S.*\S", line) for line in lines)


def test_ls_json_says_model_and_description(pasto):
    found = {one["name"]: one for one in json.loads(pasto("recipes", "ls", "--json").out)}
    assert sorted(found) == RECIPES
    assert found["tiny"] == {
        "name": "tiny",
        "model": "random:llama",
        "description": "Random weights: the whole machinery in seconds.",
    }
    # A whole sentence each, not the beginning of one.
    assert all(re.fullmatch(r"[A-Z].*\.", one["description"]) for one in found.values())


@pytest.mark.parametrize("name", ["tiny", "honesty/gemma-3-1b-it"])
def test_show_prints_the_file(pasto, name):
    assert pasto("recipes", "show", name).out == (ROOT / "recipes" / f"{name}.yaml").read_text()


def test_cp_writes_here_under_the_last_part_of_the_name(pasto, tmp_path):
    said = pasto("recipes", "cp", "honesty/gemma-3-1b-it")
    copied = tmp_path / "gemma-3-1b-it.yaml"
    assert said.code == 0 and "pasto train gemma-3-1b-it.yaml" in said.out
    assert copied.read_text() == (ROOT / "recipes" / "honesty" / "gemma-3-1b-it.yaml").read_text()
    assert pasto("recipe", "gemma-3-1b-it.yaml").code == 0


def test_cp_takes_a_file_or_a_folder(pasto, tmp_path):
    (tmp_path / "mine").mkdir()
    assert pasto("recipes", "cp", "tiny", "--out", "other.yaml").code == 0
    assert pasto("recipes", "cp", "tiny", "--out", "mine").code == 0
    text = bundled.recipe_text("tiny")
    assert (tmp_path / "other.yaml").read_text() == text
    assert (tmp_path / "mine" / "tiny.yaml").read_text() == text


def test_cp_never_replaces_a_file_unasked(pasto, tmp_path):
    (tmp_path / "tiny.yaml").write_text("mine")
    said = pasto("recipes", "cp", "tiny")
    assert (
        said.code == 1 and said.error == "error: tiny.yaml exists" and "--force" in said.next_step
    )
    assert (tmp_path / "tiny.yaml").read_text() == "mine"
    assert pasto("recipes", "cp", "tiny", "--force").code == 0
    assert (tmp_path / "tiny.yaml").read_text() == bundled.recipe_text("tiny")


def test_cp_makes_the_folder_that_is_not_there(pasto):
    said = pasto("recipes", "cp", "tiny", "--out", "new/tiny.yaml")
    assert (
        said.code == 0
        and Path("new/tiny.yaml").read_text() == (ROOT / "recipes" / "tiny.yaml").read_text()
    )
    Path("file").write_text("")
    said = pasto("recipes", "cp", "tiny", "--out", "file/tiny.yaml")
    assert said.code == 1 and "file/tiny.yaml" in said.error and said.next_step


@pytest.mark.parametrize("verb", ["show", "cp"])
@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("tinny", "Did you mean tiny?"),
        ("honesty/gemma-3-1b", "Did you mean honesty/gemma-3-1b-it?"),
        ("zzz", "All of them: pasto recipes ls"),
        ("../pyproject", "All of them: pasto recipes ls"),
    ],
)
def test_unknown_names(pasto, verb, name, next_step):
    said = pasto("recipes", verb, name)
    assert (said.code, said.next_step) == (1, next_step)
    assert said.error == f"error: {name}: no recipe of that name ships with pasto"


def test_a_recipe_is_taken_by_name_and_a_file_of_that_name_wins(pasto, tmp_path):
    by_name = pasto("recipe", "honesty/gemma-3-1b-it")
    assert by_name.code == 0 and "google/gemma-3-1b-it" in by_name.out
    assert load_recipe("tiny") == load_recipe(ROOT / "recipes" / "tiny.yaml")
    (tmp_path / "tiny").mkdir()
    assert load_recipe("tiny").name == "tiny"
    (tmp_path / "quickstart").write_text(
        "name: mine\nmodel: {source: random:llama}\npairs: {words: [kind, cruel]}\n"
    )
    assert load_recipe("quickstart").name == "mine"


def test_mistakes_in_a_named_recipe_name_it(pasto):
    said = pasto("train", "tiny", "--set", "training.epohcs=1")
    assert said.code == 1 and "did you mean 'epochs'?" in said.error


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("quickstrat", "Did you mean quickstart, which ships with pasto?"),
        ("recipes/quickstart.yaml", "Did you mean quickstart, which ships with pasto?"),
        ("quickstart.yaml", "Did you mean quickstart, which ships with pasto?"),
        ("zzz.yaml", "Recipes that ship with pasto: pasto recipes ls"),
    ],
)
def test_a_missing_recipe_leads_to_one_that_is_there(pasto, name, next_step):
    said = pasto("train", name)
    assert said.code == 1 and said.next_step.startswith(next_step)


@pytest.mark.slow
def test_the_wheel_holds_recipes_types_and_version(tmp_path):
    """What pip installs, looked at and run without the checkout."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"pasto_cli-{pasto_cli.__version__}-")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "pasto_cli" / "py.typed").exists()
    packed = installed / "pasto_cli" / "data" / "recipes"
    for name in RECIPES:
        assert (packed / f"{name}.yaml").read_text() == bundled.recipe_text(name)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*args: str) -> str:
        line = [sys.executable, "-m", "pasto_cli", *args]
        return subprocess.run(
            line, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
        ).stdout

    assert run("--version") == f"pasto {pasto_cli.__version__}\n"
    assert sorted(line.split()[0] for line in run("recipes", "ls").splitlines()) == RECIPES
    run("recipes", "cp", "tiny")
    assert (tmp_path / "tiny.yaml").read_text() == bundled.recipe_text("tiny")
    assert "random:llama" in run("recipe", "quickstart", "--set", "model.source=random:llama")
