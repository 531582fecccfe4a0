"""The model's own answers, from the recipe to pasto.json."""

import json
import shutil

import pytest

from pasto_cli.core.training import own_answers, trainer
from pasto_cli.core.training.own_answers import ask_model
from pasto_cli.workflows import answers
from tests.support.terminal import SHORT, TINY, call_in, contents, strict

ASK = ("--set", "pairs.answers={count: 16, tokens: 5, temperature: 1.0, held_out: 0.25}")
ON = (*ASK, "--set", "losses.preference={count: 2}")
ALONE = (
    "--set",
    "losses={projection: {weight: 0}, coherence: {weight: 0}, monotonicity: {weight: 0}, "
    "neutral: null, preference: {kind: bipo, count: 2}}",
)


ARGUMENTS = ("train", TINY, *SHORT, *ON)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A folder with a finished run on answers, and what it said: nothing may change it."""
    root = tmp_path_factory.mktemp("answered")
    said = call_in(root, *ARGUMENTS)
    assert said.code in (0, 1), said.err
    return root, said


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    """A folder with a run on answers that Ctrl-C ended after its second step."""
    root, real = tmp_path_factory.mktemp("killed"), trainer._Loop._step

    def step(self, epoch, group):
        if self.step == 2:
            raise KeyboardInterrupt
        real(self, epoch, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
        patch.setattr(trainer._Loop, "_step", step)
        assert call_in(root, *ARGUMENTS).code == 130
    return root


@pytest.fixture()
def killed(killed_once, tmp_path):
    """A copy of that run."""
    shutil.copytree(killed_once / "runs", tmp_path / "killed", symlinks=True)
    (run,) = (tmp_path / "killed").glob("2*")
    return run


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_a_run_with_answers_records_them_and_what_it_does_to_held_out_ones(
    pasto, answered, tmp_path
):
    root, said = answered
    shutil.copytree(root / "runs", tmp_path / "runs", symlinks=True)
    run = (tmp_path / "runs" / "latest").resolve()
    lines = [json.loads(line) for line in (run / "answers.jsonl").read_text().split("\n") if line]
    held_out = [line for line in lines if line["part"] == "held_out"]
    assert 8 <= len(lines) <= 16 and len(held_out) == round(0.25 * len(lines))
    assert f"{len(lines) - len(held_out)} pairs to train on, {len(held_out)} held out" in said.err
    words = {line["personas"][0].replace(" an honest", "") for line in lines}
    assert len(words) > 2 and all("dishonest" in line["personas"][1] for line in lines)
    for step in history(run):
        assert step["parts"]["preference"] > 0
        assert {"preference_pos", "preference_neg"} <= set(step["diagnostics"])
    last = history(run)[-1]
    assert last["validation"] and last["diagnostics"]["preference_n"] == len(held_out)
    assert last["loss"] == pytest.approx(sum(last["parts"].values()), rel=1e-5)
    meta = strict((run / "adapter" / "pasto.json").read_text())
    assert len(meta["answers_sha256"]) == 64
    assert pasto("verify").code == 0
    assert pasto("report", "--samples", 0).code == 0


def test_a_run_without_answers_says_nothing_of_them(project):
    meta = strict((project.run / "adapter" / "pasto.json").read_text())
    assert "answers_sha256" not in meta
    assert not (project.run / "answers.jsonl").exists()


def test_it_trains_alone(pasto, project):
    said = pasto("train", "tiny.yaml", *SHORT, *ASK, *ALONE)
    assert said.code in (0, 1), said.err
    run = (project.root / "runs" / "latest").resolve()
    steps = [step for step in history(run) if not step["validation"]]
    for step in steps:
        assert step["loss"] == pytest.approx(step["parts"]["preference"], abs=1e-5)
        assert step["loss"] > 0
    parts = [step["parts"]["preference"] for step in steps]
    assert len(set(parts)) == len(parts)


def test_an_interrupted_run_ends_with_the_same_bytes_and_answers(
    pasto, answered, killed, trained, monkeypatch
):
    run, whole = killed, (answered[0] / "runs" / "latest").resolve()
    said_then = (run / "answers.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(answers, "ask_model", lambda *_: pytest.fail("asked again"))
        assert pasto("train", "--resume", run).code in (0, 1)
    assert said_then == (run / "answers.jsonl").read_bytes()
    assert said_then == (whole / "answers.jsonl").read_bytes()
    name = "adapter.safetensors"
    assert contents(run / "adapter")[name] == contents(whole / "adapter")[name]
    assert contents(run / "adapter")[name] != contents(trained.run / "adapter")[name]
    assert [step | {"seconds": 0} for step in history(run)] == [
        step | {"seconds": 0} for step in history(whole)
    ]


@pytest.mark.parametrize("content", [None, "{\n"])
def test_answers_that_vanished_or_are_damaged_stop_a_resumed_run(pasto, killed, content):
    run = killed
    if content is None:
        (run / "answers.jsonl").unlink()
    else:
        (run / "answers.jsonl").write_text(content)
    before = contents(run / "adapter")
    said = pasto("train", "--resume", run)
    assert said.code == 1 and "answers.jsonl" in said.error and said.next_step == "Train again."
    assert contents(run / "adapter") == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rejected": "same", "chosen": "same"}, "16 dropped: both answers are the same"),
        ({"chosen": " "}, "16 dropped: an answer is empty"),
        ({"rejected_tokens": (1, 2, 3, 4)}, "16 dropped: an answer opens as most do"),
    ],
)
def test_answers_that_are_all_alike_end_in_one_line(pasto, project, monkeypatch, change, why):
    before = contents(project.root / "runs")

    def alike(*args):
        return [pair.model_copy(update=change) for pair in ask_model(*args)]

    monkeypatch.setattr(answers, "ask_model", alike)
    said = pasto("train", "tiny.yaml", *SHORT, *ON)
    assert said.code == 1 and "0 usable pairs of 16" in said.error and why in said.error
    assert "pasto make-pairs --screen MODEL" in said.next_step
    assert contents(project.root / "runs") == before


def test_a_second_run_asks_nobody(pasto, answered, tmp_path, monkeypatch):
    root, _ = answered
    first = (root / "runs" / "latest" / "answers.jsonl").read_bytes()
    monkeypatch.setenv("PASTO_CACHE", str(root / ".cache"))
    monkeypatch.setattr(own_answers, "sampled_answers", lambda *_: pytest.fail("asked again"))
    assert pasto(*ARGUMENTS).code in (0, 1)
    assert (tmp_path / "runs" / "latest" / "answers.jsonl").read_bytes() == first


def test_questions_from_the_benchmark_are_refused_before_training(pasto, project):
    from pasto_cli.core.evaluation.benchmarks import load_benchmark

    items = load_benchmark("mini-dilemmas").items
    asked = [item.prompt.partition("\n\n")[2].replace("\n", " ") for item in items]
    (project.root / "mine.txt").write_text("\n".join(asked[:12]) + "\n")
    before = contents(project.root / "runs")
    said = pasto("train", "tiny.yaml", *ON, "--set", "pairs.answers={questions: mine.txt}")
    assert said.code == 1
    assert "12 questions overlap with the benchmark mini-dilemmas" in said.error
    assert contents(project.root / "runs") == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("losses.preference={weight: -1}", "losses.preference.weight"),
        ("losses.preference={kind: reps}", "losses.preference.kind"),
        ("losses.preference=null", "pairs.answers is of no use without losses.preference"),
        ("pairs.answers=null", "losses.preference is of no use without pairs.answers"),
        ("pairs.answers={temperature: 0}", "pairs.answers.temperature"),
        ("pairs.answers={questions: nowhere.txt}", "nowhere.txt: cannot be read as questions"),
    ],
)
def test_bad_answers_are_named(pasto, project, change, error):
    said = pasto("train", "tiny.yaml", *ON, "--set", change)
    assert said.code == 1 and error in said.err
