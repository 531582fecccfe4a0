"""The report as a browser shows it: nothing is cut off on a desk or on a telephone, and the figures
are drawn."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pasto_cli.base import bundled
from pasto_cli.core.evaluation.benchmarks import load_benchmark
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.evaluation.oracles import simulate
from pasto_cli.core.evaluation.scores import scores
from pasto_cli.core.evaluation.sentiment import score_texts
from pasto_cli.core.records.evaluation import EvalRun, dump
from pasto_cli.core.records.scores import key
from pasto_cli.core.report.plots import COLOURS
from tests.support.browser import OPTIONS, find_browser
from tests.support.terminal import ROOT, call_in

pytestmark = pytest.mark.slow
WIDTHS = (1280, 400)
FIGURES = 24
"""Certificate; dose, side effects, flips, mass, KL, NLL, values, frameworks; the first six again
with the published sign; two comparisons; sentiment, repetition, length; loss terms, strength,
direction, gap."""
GREEN, RED = (0, 255, 0), (255, 0, 0)
# A window opens at some width of its own and gets its size later, before a picture of it is taken.
CHECK = (ROOT / "tests" / "support" / "check_page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    """Path of a Chromium; CI must have one, a user's machine may not."""
    found = find_browser()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: the report cannot be looked at")
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def rows():
    """Rows of a perfect steerer; each label also stands for a class of a framework, as in
    DailyDilemmas."""
    found = simulate(load_benchmark("mini-dilemmas").items, "honesty", "perfect", 0)
    for row in found:
        row.labels.update({f"MFT: of {value}": label for value, label in list(row.labels.items())})
    return found


@pytest.fixture(scope="module")
def page(trained, rows, tmp_path_factory):
    """The report of a run on which everything was measured. Random weights answer nothing: a
    simulated steerer answers."""
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(trained.root / "runs", root / "runs", symlinks=True)
    folder = root / "runs" / trained.run.name / "eval"
    folder.mkdir()
    benchmark = load_benchmark("mini-dilemmas")

    def estimate(value):
        return {"value": value, "low": value * 0.8, "high": value * 1.3, "n": 24, "clusters": 24}

    sizes = {"kl_p95": 0.9, "kl_mean": 0.3, "nll": 3.0, "nll_shift": 0.1}
    disturbance = {
        key(a): {name: estimate(size * abs(a)) for name, size in sizes.items()} for a in ENDS
    }

    def write(name, sign="own", **provenance):
        run = EvalRun(
            benchmark=benchmark.name,
            title=benchmark.title,
            licence=benchmark.licence,
            source=benchmark.source,
            value="honesty",
            coefficients=list(ENDS),
            pmass_threshold=0.05,
            partial=False,
            rows=rows,
            label_sign=sign,
            scores=found[sign],
            disturbance=disturbance,
            provenance=provenance,
        )
        (folder / name).write_text(dump(run))

    found = {
        s: scores(Table(rows, "honesty", ENDS, 0.05, label_sign=s)) for s in ("own", "original")
    }
    write("mini-dilemmas.json")
    write("mini-dilemmas-original-sign.json", "original")
    for method in (
        "adapter",
        "prompt",
        "engineered-prompt",
        "control-vector",
        "mean-diff",
        "random-rotation",
    ):
        for equal, ending in ((False, "compared"), (True, "equal-kl")):
            write(
                f"mini-dilemmas-{method}-{ending}.json",
                method=method,
                equal_kl=equal,
                created="2026-01-01T00:00:00Z",
            )
    prompts = bundled.lines("sentiment_prompts.txt")
    texts = [
        ["What a sad, dull day.", f"It is a day. {'long' * 30}", "What a happy, bright day it is!"]
        for _ in prompts
    ]
    (folder / "sentiment.json").write_text(
        score_texts(prompts, ENDS, texts, 0, {}).model_dump_json()
    )
    said = call_in(root, "report")
    assert said.code == 0, said.err
    return root / "runs" / trained.run.name / "report.html"


@pytest.fixture()
def look(browser, tmp_path):
    """`look(page, width, height)`: a picture of a page in a window of that size, (height, width, 3)
    bytes."""

    def take(page: Path, width: int, height: int):
        picture = tmp_path / f"{width}.png"
        command = [
            browser,
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert picture.exists(), done.stderr
        return np.asarray(Image.open(picture).convert("RGB"))

    return take


def checked(look, page, width, folder, spoil=lambda html: html):
    """Colour of the page's own verdict in a window, and the file of the picture that holds its
    reasons."""
    html = spoil(page.read_text(encoding="utf-8"))
    script = CHECK.replace("WIDTH", str(width)).replace("FIGURES", str(FIGURES))
    copy = folder / "checked.html"
    assert html.count("</body>") == 1
    copy.write_text(html.replace("</body>", script), encoding="utf-8")
    seen = look(copy, width, 900)
    assert seen.shape == (900, width, 3)
    return tuple(int(x) for x in seen[-1, -1]), folder / f"{width}.png"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_every_figure_is_drawn(page, look, tmp_path, width):
    colour, picture = checked(look, page, width, tmp_path)
    assert colour == GREEN, f"the reasons are written in {picture}"


SPOILT = {
    "a wide element": lambda html: html.replace(
        "<main>", '<main><div style="width: 2000px">wide</div>'
    ),
    "a figure too few": lambda html: re.sub(
        "<figure>.*?</figure>", "", html, count=1, flags=re.DOTALL
    ),
    "empty figures": lambda html: html.replace(
        "</style>", "figure path { display: none } </style>", 1
    ),
    "narrow figures": lambda html: html.replace(
        "figure svg {", "figure svg { width: 200px !important;"
    ),
    "a cut label": lambda html: html.replace(
        "prompt-equivalents</text>", f"{'prompt-equivalents ' * 9}</text>"
    ),
    "a broken word": lambda html: html.replace("overflow-wrap: break-word", ""),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_the_look_sees_what_is_wrong(page, look, tmp_path, spoil):
    assert spoil(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")
    assert checked(look, page, 400, tmp_path, spoil)[0] == RED


@pytest.mark.parametrize("width", WIDTHS)
def test_curves_are_seen(page, look, width):
    seen = look(page, width, 6000).astype(int)
    assert seen.shape == (6000, width, 3)
    wanted = [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    near = (np.abs(seen - wanted) <= 4).all(-1)
    assert near.sum() > 2000
    assert near.any(1).sum() > 500  # in many places of the page, not in one box
