"""`pasto --help`."""

import ast
import subprocess
import sys


def test_help(pasto):
    said = pasto("--help")
    assert said.code == 0
    for command in (
        "make-pairs",
        "train",
        "eval",
        "report",
        "benchmarks",
        "generate",
        "chat",
        "serve",
        "push",
        "recipe",
    ):
        assert command in said.out
        for flag in ("-h", "--help"):
            assert pasto(command, flag).code == 0
        assert f"pasto {command}" in pasto(command, "--help").out  # an example


def test_help_loads_next_to_nothing():
    """A program of one Typer command takes 0.15 s; each of these would add as much or more."""
    code = "import sys; sys.argv = ['pasto', '--help']\nfrom pasto_cli.__main__ import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))
    assert "typer" in loaded and not loaded & {
        "torch",
        "transformers",
        "pydantic",
        "numpy",
        "yaml",
        "safetensors",
        "huggingface_hub",
    }
