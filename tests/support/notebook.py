"""Run the code cells of a notebook, without Jupyter.

python -m tests.support.notebook docs/guides/talk_to_a_dial.ipynb

runs one here and writes what its cells said into it. Figures that a cell leaves open are its
pictures.
"""

import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Execute every code cell in order: (the notebook with its outputs, the names it defined)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        said = io.StringIO()
        code = compile("".join(cell["source"]), f"{path.name}[{number + 1}]", "exec")
        with redirect_stdout(said):
            exec(code, names)
        cell["execution_count"], cell["outputs"] = number + 1, []
        if text := said.getvalue():
            lines = text.splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        for figure in map(pyplot.figure, pyplot.get_fignums()):
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=80)
            picture = base64.b64encode(drawn.getvalue()).decode()
            cell["outputs"].append(
                {"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}}
            )
        pyplot.close("all")
    return notebook, names


if __name__ == "__main__":
    where = Path(sys.argv[1])
    text = json.dumps(run(where)[0], indent=1, ensure_ascii=False)
    where.write_text(text + "\n", encoding="utf-8")
