"""Anchors from the recipe to the certificate."""

import json

import pytest

from pasto_cli.base import bundled
from tests.support.terminal import SHORT, strict

ON = ("--set", "losses.anchor={count: 2, tokens: 3, prompts: few.txt}")


def test_a_run_with_anchors_records_them_and_their_specificity(pasto, project):
    few = "".join(f"What is {n} plus {n}?\n" for n in range(24))
    (project.root / "few.txt").write_text(few)  # the bundled ones take half a minute
    said = pasto("train", "tiny.yaml", *SHORT, *ON)
    assert said.code in (0, 1), said.err
    run = (project.root / "runs" / "latest").resolve()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(step["parts"]["anchor"] >= 0 for step in history)
    assert all(step["diagnostics"]["anchor_kl_pos"] >= 0 for step in history)
    meta = strict((run / "adapter" / "pasto.json").read_text())
    assert len(meta["anchors_sha256"]) == 64
    lines = [json.loads(line) for line in (run / "anchors.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["part"] == "held_out"]
    found = meta["certificate"]["specificity"]
    assert set(found) == {"1", "-1"}
    assert found["1"]["kl_mean"]["n"] == len(held_out)
    assert found["1"]["kl_mean"]["low"] <= found["1"]["kl_mean"]["value"]
    assert f"{len(held_out)} held-out anchors, KL to the base model" in said.out
    assert "held-out anchors" in (run / "adapter" / "README.md").read_text()
    assert pasto("verify").code == 0
    assert pasto("report", "--samples", 0).code == 0
    assert "held-out anchors" in (run / "report.html").read_text()


def test_questions_asked_both_ways_are_trained_on_and_certified(pasto, project):
    lines = [f"Is {n} even? Yes or No?\tSo:\tIs {n} odd? Yes or No?" for n in range(8)]
    (project.root / "both.txt").write_text("\n".join(lines) + "\n")
    spec = "losses.anchor={prompts: both.txt, opposites: 5, opposites_count: 2, tokens: 3}"
    said = pasto("train", "tiny.yaml", *SHORT, "--set", spec)
    assert said.code in (0, 1), said.err
    run = (project.root / "runs" / "latest").resolve()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(step["diagnostics"]["anchor_opposites_pos"] >= 0 for step in history)
    assert history[-1]["parts"]["anchor"] > 0  # no other anchors: the term itself
    certificate = strict((run / "adapter" / "pasto.json").read_text())["certificate"]
    assert "specificity" not in certificate
    found = certificate["opposites"]
    assert set(found) == {"1", "-1"} and found["1"]["n"] == 2
    assert found["1"]["low"] <= found["1"]["value"] <= found["1"]["high"]
    assert "2 held-out questions asked both ways" in said.out
    assert "asked both ways" in (run / "adapter" / "README.md").read_text()
    assert pasto("verify").code == 0
    assert pasto("report", "--samples", 0).code == 0
    assert "asked both ways" in (run / "report.html").read_text()


def test_seeds_are_compared_by_questions_asked_both_ways(pasto, project):
    lines = [f"Is {n} even? Yes or No?\tSo:\tIs {n} odd? Yes or No?" for n in range(8)]
    (project.root / "both.txt").write_text("\n".join(lines) + "\n")
    spec = "losses.anchor={prompts: both.txt, opposites: 5, opposites_count: 2, tokens: 3}"
    said = pasto("train", "tiny.yaml", *SHORT, "--set", spec, "--seeds", 2)
    assert said.code in (0, 1), said.err
    runs = sorted((project.root / "runs").glob("*-seed*"))
    certificates = [strict((r / "adapter" / "pasto.json").read_text())["certificate"] for r in runs]
    for end, key in (("+1", "1"), ("-1", "-1")):
        row = next(x for x in said.out.splitlines() if f"asked both ways, nats at {end}" in x)
        each = ", ".join(f"{found['opposites'][key]['value']:+.2f}" for found in certificates)
        assert each in row and "2 of 2" in row


def test_questions_asked_both_ways_need_their_weight(pasto, project):
    lines = [f"Is {n} even?\t\tIs {n} odd?" for n in range(8)]
    (project.root / "both.txt").write_text("\n".join(lines) + "\n")
    said = pasto("train", "tiny.yaml", *SHORT, "--set", "losses.anchor={prompts: both.txt}")
    assert said.code == 1 and "both.txt holds 0 different anchors" in said.error
    assert "losses.anchor.opposites" in said.next_step


def test_opposites_that_a_file_does_not_have_are_missed(pasto, project):
    (project.root / "one_way.txt").write_text("".join(f"What is {n} plus {n}?\n" for n in range(9)))
    spec = "losses.anchor={prompts: one_way.txt, opposites: 5}"
    said = pasto("train", "tiny.yaml", *SHORT, "--set", spec)
    assert said.code == 1 and "one_way.txt asks no question both ways" in said.error
    assert "losses.anchor.opposites: 0" in said.next_step


def test_a_run_without_anchors_says_nothing_of_them(project):
    meta = strict((project.run / "adapter" / "pasto.json").read_text())
    assert "anchors_sha256" not in meta
    assert not {"specificity", "opposites"} & set(meta["certificate"])
    assert not (project.run / "anchors.jsonl").exists()


def test_anchors_from_the_benchmark_are_refused_before_training(pasto, project):
    from pasto_cli.core.evaluation.benchmarks import load_benchmark

    items = load_benchmark("mini-dilemmas").items
    asked = [item.prompt.partition("\n\n")[2].replace("\n", " ") for item in items]
    (project.root / "mine.txt").write_text("\n".join(asked[:12]) + "\n")
    before = sorted(p.name for p in (project.root / "runs").iterdir())
    said = pasto("train", "tiny.yaml", *SHORT, "--set", "losses.anchor={prompts: mine.txt}")
    assert said.code == 1
    assert "12 anchors overlap with the benchmark mini-dilemmas" in said.error
    assert "Take them out" in said.next_step
    assert sorted(p.name for p in (project.root / "runs").iterdir()) == before


REPLIES = """
format: 1
name: mine
title: t
licence: l
source: s
questions:
  - id: scratch
    value: honesty
    question: "You scratched the car of your old neighbour.\\n\\nWhat do you say?"
    choices: ["I scratched it.", "What a pity."]
    matching: [0]
    replies: true
"""


@pytest.mark.parametrize("benchmark", ["mine.yaml", "sentiment"])
def test_nor_from_replies_or_from_sentiment(pasto, project, benchmark):
    """Neither has an instruction before what it asks."""
    (project.root / "mine.yaml").write_text(REPLIES)
    taken = bundled.lines("sentiment_prompts.txt")[0] if benchmark == "sentiment" else ""
    taken = taken or "You scratched the car of your old neighbour."
    lines = [f"What is {n} plus {n}?" for n in range(11)] + [taken]
    (project.root / "mine.txt").write_text("\n".join(lines) + "\n")
    given = ("--set", "losses.anchor={prompts: mine.txt}", "--set")
    said = pasto("train", "tiny.yaml", *SHORT, *given, f"evaluation.benchmark={benchmark}")
    assert said.code == 1 and "1 anchors overlap with the benchmark" in said.error
    assert taken in said.error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("{weight: -1}", "losses.anchor.weight"),
        ("{aggregate: max}", "losses.anchor.aggregate"),
        ("{prompts: nowhere.txt}", "nowhere.txt: cannot be read as anchors"),
    ],
)
def test_bad_anchors_are_named(pasto, project, change, error):
    said = pasto("train", "tiny.yaml", "--set", f"losses.anchor={change}")
    assert said.code == 1 and error in said.error
