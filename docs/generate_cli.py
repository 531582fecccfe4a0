"""docs/cli.md from `pasto --help` and `pasto VERB --help` of every verb.

    python docs/generate_cli.py            write docs/cli.md
    python docs/generate_cli.py --check    end with 1 if docs/cli.md is not what the code says

The verbs are read from the Typer app itself, groups included, so that a new one appears by itself.
The text is the same on every terminal: fixed width, no colour. Imports no torch.
"""

import difflib
import os
import sys
from pathlib import Path
from typing import Any

WIDTH = 100
PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# Command line

Written by `make docs-cli` from the help texts of the commands; do not edit it by hand. What a
command is for stands in the [guides](guides/first_dial.md), what its figures mean in
[evaluation](evaluation.md).
"""

# Typer reads these when it is imported, so they are set before it is.
os.environ |= {
    "TERMINAL_WIDTH": str(WIDTH),
    "COLUMNS": str(WIDTH),
    "NO_COLOR": "1",
    "TERM": "dumb",
    "_TYPER_FORCE_DISABLE_TERMINAL": "1",
}
for variable in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(variable, None)


def verbs(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every command below a group, in the order of the app."""
    found = []
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            found += [(*path, name), *verbs(child, (*path, name))]
    return found


def page() -> str:
    """Return the text of docs/cli.md."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from pasto_cli.cli.app import app

    runner = CliRunner()
    parts = [HEAD]
    for path in [(), *verbs(get_command(app))]:
        result = runner.invoke(app, [*path, "--help"], prog_name="pasto")
        if result.exit_code:
            raise SystemExit(f"pasto {' '.join(path)} --help ended with {result.exit_code}")
        text = "\n".join(line.rstrip() for line in result.stdout.splitlines()).strip("\n")
        parts.append(f"## {' '.join(('pasto', *path))}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it with the file."""
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    text = page()
    if not sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    kept = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if kept == text:
        return 0
    lines = difflib.unified_diff(
        kept.splitlines(), text.splitlines(), "docs/cli.md", "what the code says", n=1, lineterm=""
    )
    print(*lines, sep="\n")
    print("error: docs/cli.md is out of date\nnext:  make docs-cli", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
