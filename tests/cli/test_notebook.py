"""The notebook of the guides runs as it stands, here on the dial of a random model."""

import math

from tests.support.notebook import run
from tests.support.terminal import ROOT, threads

NOTEBOOK = ROOT / "docs" / "guides" / "talk_to_a_dial.ipynb"


def test_every_cell_runs(trained, monkeypatch):
    monkeypatch.chdir(trained.root)
    with threads(1):
        notebook, names = run(NOTEBOOK)
    dial = names["dial"]
    assert dial.folder.resolve() == trained.run / "adapter"
    assert names["answers"] == dict(
        dial.generate(names["PROMPT"], coeffs=[-1, -0.5, 0, 0.5, 1], max_new_tokens=40)
    )
    assert names["disturbance"][4] == 0.0 and all(map(math.isfinite, names["response"]))
    assert min(names["disturbance"][:4] + names["disturbance"][5:]) > 0.0
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [bool(cell["outputs"]) for cell in code] == [False, True, True, True, True]
    assert code[-1]["outputs"][-1]["data"].keys() == {"image/png"}
