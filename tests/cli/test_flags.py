"""What the command line loads before a command runs, and its flags, frozen."""

import subprocess
import sys

import typer

from pasto_cli.cli.app import app
from tests.support.terminal import ROOT


def test_the_command_line_starts_without_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import pasto_cli.cli.app"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pasto_cli.cli.app" in modules
    assert not {
        m
        for m in modules
        if m.split(".")[0] in ("torch", "transformers", "numpy", "datasets", "huggingface_hub")
    }


def test_mistakes_in_a_recipe_are_found_without_torch(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\nmodel: {}\n")
    code = (
        "import sys; sys.argv = ['pasto', 'train', 'r.yaml']; from pasto_cli.cli.app import main\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (
        1,
        "False\n",
    ) and "r.yaml:2: model.source: required and missing" in done.stderr


FLAGS = {
    "dial": "model positive negative --force --json --out --prompt --quick --recipe --recipe-out "
    "--seed --set --tune",
    "plan": "recipe --device-memory --json --set",
    "make-pairs": "positive negative --column --count --dataset --force --json --model --out "
    "--personas --recipe --screen --seed --set --suffixes --templates",
    "train": "recipe --force --json --out --resume --seeds --set",
    "tune": "recipe --force --json --out --pick --resume --set --storage --study --trials --worker",
    "eval": "adapters --baseline --batch-size --benchmark/-b --coeffs --data --device --equal-kl "
    "--harness --json --label-sign --limit --no-verify --oracles --quantization --raw --tasks "
    "--together --value",
    "report": "run --json --out --samples",
    "benchmarks": "--data --json",
    "calibrate": "adapter --device --json --kl --no-verify --quantization",
    "interference": "adapters --device --json --no-verify --quantization",
    "export": "--adapter/-a --coeff/-c --device --force --format --json --no-verify --out "
    "--quantization --raw",
    "generate": "prompt --adapter/-a --coeff/-c --device --json --max-new-tokens --no-verify "
    "--quantization --raw --seed --stdin --temperature",
    "chat": "adapters --device --max-new-tokens --no-verify --quantization --raw --seed "
    "--temperature",
    "serve": "adapters --adapter/-a --allow-origin --api-key --device --engine --engine-command "
    "--exact --grace --grid --host --json --loaded --log-prompts --lora-dir --max-output-tokens "
    "--max-prompt-tokens --max-tokens --no-verify --port --quantization --queue --raw --rows "
    "--timeout --upstream --upstream-key",
    "import": "source --base --device --json --out --quantization --words",
    "verify": "adapter --api-key --coeff/-c --device --endpoint --json --model --prompts "
    "--quantization",
    "pull": "repo --force --json --out --revision",
    "push": "repo --adapter/-a --base-model --dry-run --json --private",
    "recipe": "file --schema --set",
    "recipes ls": "--json",
    "recipes show": "name",
    "recipes cp": "name --force --out",
}


def test_flags_are_frozen():
    """A flag that changes or goes breaks people's scripts: change this snapshot knowingly."""
    commands = {}
    for name, command in typer.main.get_command(app).commands.items():
        below = getattr(command, "commands", None)
        commands |= {f"{name} {verb}": c for verb, c in below.items()} if below else {name: command}
    found = {}
    for name, command in commands.items():
        arguments = [
            p.name for p in command.params if p.param_type_name == "argument"
        ]  # their order matters
        options = sorted(
            "/".join([*p.opts, *p.secondary_opts])
            for p in command.params
            if p.param_type_name == "option"
        )
        found[name] = " ".join(arguments + options)
    assert found == FLAGS
