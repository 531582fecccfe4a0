"""What goes wrong: each mistake ends with its exit code, one clear line and a next step, and never
with a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pasto_cli.core.training.objective import Objective
from pasto_cli.workflows import prepare
from tests.support.runs import GENERATE, TRAIN
from tests.support.terminal import Finished, contents, strict


class Mistake(NamedTuple):
    """What a user does wrong in a folder with a finished run, and what must be said about it."""

    args: tuple[str, ...]
    error: str
    """Part of the first line of the message."""
    next_step: str
    prepare: Callable[[Finished, pytest.MonkeyPatch], object] = lambda *_: None
    code: int = 1
    stdin: str | bytes | None = None


def no_runs(project, patch):
    shutil.rmtree(project.root / "runs")


def folder_without_adapter(project, patch):
    shutil.rmtree(project.run / "adapter")


def truncate_tensors(project, patch):
    path = project.run / "adapter" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_tensors(project, patch):
    (project.run / "adapter" / "adapter.safetensors").unlink()


def change_meta(change):
    def prepare(project, patch):
        path = project.run / "adapter" / "pasto.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return prepare


def write(name, text):
    def prepare(project, patch):
        path = project.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return prepare


def no_token(project, patch):
    from huggingface_hub import constants

    patch.setenv("HF_TOKEN", "")
    patch.setenv("HUGGING_FACE_HUB_TOKEN", "")
    patch.setenv("HF_HOME", str(project.root / "home"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(project.root / "home" / "token"))


def some_token(project, patch):
    no_token(project, patch)
    patch.setenv("HF_TOKEN", "hf_notarealtoken")


def full_disk(project, patch):
    real = Path.open

    def open_(self, *args, **options):
        if self.name == "history.jsonl":
            raise OSError(28, "No space left on device")
        return real(self, *args, **options)

    patch.setattr(Path, "open", open_)


def disk_fills_up(name):
    def prepare(project, patch):
        real = Path.write_text

        def write_text(self, *args, **options):
            if name in self.name:
                raise OSError(28, "No space left on device")
            return real(self, *args, **options)

        patch.setattr(Path, "write_text", write_text)

    return prepare


def powerless_personas(project, patch):
    real = prepare.elicit

    def elicit(*args, **options):
        found = real(*args, **options)
        return found._replace(
            span=found.span.model_copy(update={"value": 0.0, "low": 0.0, "high": 0.0})
        )

    patch.setattr(prepare, "elicit", elicit)


def spoil_the_losses(project, patch):
    real = Objective.__call__

    def call(self, *args, **options):
        report = real(self, *args, **options)
        return report._replace(total=report.total * torch.nan)

    patch.setattr(Objective, "__call__", call)


PAIR = '{"chosen": "a", "rejected": "b", "neutral": "c", "suffix": "d"}\n'


MISTAKES = {
    # recipes
    "a run that is not in the folder of runs": Mistake(
        ("generate", "-a", "runs/nope", "Hi"), "no such run in runs", "ls runs"
    ),
    "no coefficient after the colon": Mistake(
        ("generate", "-a", "runs/latest:x", "Hi"), "'x' is no coefficient", "runs/latest:-0.5"
    ),
    "a typing error in sentiment": Mistake(
        ("eval", "-b", "sentimnet"), "unknown benchmark 'sentimnet'", "Did you mean sentiment?"
    ),
    "a recipe with an unknown benchmark": Mistake(
        ("recipe", "tiny", "--set", "evaluation.benchmark=nope"),
        "unknown benchmark 'nope'",
        "mini-dilemmas",
    ),
    "empty words": Mistake(
        ("make-pairs", "", ""), "two words are needed", "pasto make-pairs honest dishonest"
    ),
    "one word of two": Mistake(
        ("recipe", "tiny", "--set", "pairs.words=[honest, ]"), "write 2 values in the list", ""
    ),
    "a file where exports are to go": Mistake(
        ("export", "--out", "x.txt"), "x.txt is a file", "another --out", write("x.txt", "x")
    ),
    "an empty prompt for a new dial": Mistake(
        ("dial", "random:llama", "a", "b", "--prompt", " "), "the prompt is empty", "leave it out"
    ),
    "unknown recipe key": Mistake(
        ("train", "bad.yaml"),
        "bad.yaml:4: training.epohcs: unknown key; did you mean 'epochs'?",
        "pasto recipe --schema",
        write(
            "bad.yaml",
            "name: x\nmodel: {source: random:llama}\npairs: {words: [a, b]}\ntraining: {epohcs: "
            "3}\n",
        ),
    ),
    "unknown key in --set": Mistake(
        ("recipe", "tiny.yaml", "--set", "adapter.rnk=3"), "did you mean 'rank'?", "--schema"
    ),
    "a key that was renamed": Mistake(
        ("train", "tiny.yaml", "--set", "adapter.calibration_pairs=3"),
        "adapter.calibration_pairs: unknown key; it is called 'activation_pairs' now",
        "--schema",
    ),
    "value of the wrong kind": Mistake(
        ("train", "tiny.yaml", "--set", "training.epochs=many"),
        "--set training.epochs=many: training.epochs:",
        "--schema",
    ),
    "--set without a value": Mistake(
        ("recipe", "tiny.yaml", "--set", "adapter"), "write --set section.key=value", "--schema"
    ),
    "no recipe file": Mistake(
        ("train", "tinny.yaml"), "tinny.yaml: no such recipe", "Did you mean tiny.yaml?"
    ),
    "no recipe given": Mistake(("recipe",), "no recipe given", "pasto recipe --schema"),
    "a folder as recipe": Mistake(("recipe", "runs"), "runs: cannot be read as a recipe", "YAML"),
    "quantisation in a recipe": Mistake(
        ("train", "tiny.yaml", "--set", "model.quantization=3bit"),
        "'3bit' is not allowed",
        "--schema",
    ),
    # pairs
    "no pairs file": Mistake(
        ("train", "tiny.yaml", "--set", "pairs={file: gone.jsonl}"),
        "gone.jsonl: cannot be read as pairs",
        "one entry per line",
    ),
    "a bad line in a pairs file": Mistake(
        ("train", "tiny.yaml", "--set", "pairs={file: p.jsonl}"),
        "p.jsonl:2: neutral:",
        "chosen, rejected, neutral, suffix",
        write("p.jsonl", PAIR + '{"chosen": "a", "rejected": "b"}\n'),
    ),
    "too few pairs in a file": Mistake(
        ("train", "tiny.yaml", "--set", "pairs={file: p.jsonl}"),
        "p.jsonl gives 3 usable pairs",
        "800",
        write("p.jsonl", PAIR * 3),
    ),
    "too few pairs": Mistake(
        ("train", "tiny.yaml", "--set", "pairs.count=7"), "at least 8", "pairs.count"
    ),
    "too few openings": Mistake(
        ("make-pairs", "kind", "cruel", "--suffixes", "s.txt", "--templates", "t.txt"),
        "gives 3 usable pairs",
        "Add suffixes",
        lambda p, m: (
            write("s.txt", "one\ntwo\nthree\n")(p, m),
            write("t.txt", "Be {persona} one.\n")(p, m),
        ),
    ),
    "the same persona twice": Mistake(
        ("make-pairs", "Honest", "honest"), "both personas are", "different words"
    ),
    "the same persona twice in a recipe": Mistake(
        ("train", "tiny.yaml", "--set", "pairs.words=[kind, kind]"),
        "both personas are 'a kind'",
        "different words",
    ),
    "one word": Mistake(
        ("make-pairs", "honest"), "two words are needed", "pasto make-pairs honest dishonest"
    ),
    "a template without its place": Mistake(
        ("make-pairs", "kind", "cruel", "--templates", "t.txt"),
        "'Be kind.' must hold {persona}",
        "--help",
        write("t.txt", "Be kind."),
    ),
    "no openings file": Mistake(
        ("make-pairs", "kind", "cruel", "--suffixes", "no.txt"),
        "no.txt: cannot be read",
        "one entry",
    ),
    "an empty openings file": Mistake(
        ("make-pairs", "kind", "cruel", "--suffixes", "s.txt"),
        "s.txt: holds no suffixes",
        "one entry per line",
        write("s.txt", "\n"),
    ),
    "pairs into a file": Mistake(
        ("make-pairs", "kind", "cruel", "--out", "tiny.yaml/where.jsonl"),
        "tiny.yaml/where.jsonl",
        "",
    ),
    "personas that do nothing": Mistake(
        TRAIN, "do not move the base model at all", "words that contrast", powerless_personas
    ),
    "a recipe and words": Mistake(
        ("make-pairs", "a", "b", "--recipe", "tiny.yaml"), "--recipe", "--set"
    ),
    "--set without a recipe": Mistake(
        ("make-pairs", "kind", "cruel", "--set", "pairs.count=9"), "--set", "--recipe FILE"
    ),
    "two sources of openings": Mistake(
        ("make-pairs", "kind", "cruel", "--suffixes", "s.txt", "--dataset", "a/b"),
        "--suffixes and --dataset",
        "one of them",
    ),
    "a dataset that the Hub cannot give": Mistake(
        ("make-pairs", "kind", "cruel", "--dataset", "me/nothing"),
        "dataset 'me/nothing' cannot be loaded",
        "--suffixes FILE",
    ),
    # models
    "a folder without a model": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=./empty"),
        "empty: config.json is missing",
        "model.source",
        write("empty/readme.txt", "nothing"),
    ),
    "a folder that is not there": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=./gone"),
        "./gone: no such folder",
        "config.json",
    ),
    "no GGUF file": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=gone.gguf"),
        "no such GGUF file",
        "model.source",
    ),
    "a GGUF file that is none": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=x.gguf"),
        "x.gguf: cannot be read as a GGUF model",
        "complete",
        write("x.gguf", "GGUF"),
    ),
    "a package that is not there": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=package:no_such_one/x.gguf"),
        "'no_such_one'",
        "pip install",
    ),
    "an unknown random model": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=random:lama"),
        "no random model is called 'lama'",
        "random:llama",
    ),
    "a model that the Hub cannot give": Mistake(
        ("train", "tiny.yaml", "--set", "model.source=someone/nothing"),
        "the Hub cannot be reached",
        "Check the connection",
    ),
    # adapters
    "no run yet": Mistake(("eval",), "no finished run in runs/", "pasto train quickstart", no_runs),
    "no run yet, to generate": Mistake(GENERATE, "no finished run in runs/", "--adapter", no_runs),
    "no run yet, to push": Mistake(
        ("push", "me/dial", "--dry-run"), "no finished run in runs/", "--adapter", no_runs
    ),
    "a folder without an adapter": Mistake(
        ("eval", "runs/latest"), "no adapter here", "adapter/", folder_without_adapter
    ),
    "an adapter folder that is not there": Mistake(
        (*GENERATE, "-a", "./gone"), "gone: no adapter here", "user/name"
    ),
    "damaged tensors": Mistake(
        GENERATE, "adapter.safetensors: damaged or missing", "again", truncate_tensors
    ),
    "no tensors": Mistake(GENERATE, "adapter.safetensors: damaged or missing", "again", no_tensors),
    "half a pasto.json": Mistake(
        ("eval",),
        "pasto.json: cannot be read",
        "again",
        lambda p, _: (p.run / "adapter" / "pasto.json").write_text("{"),
    ),
    "a format of the future": Mistake(
        ("eval",),
        "format 2; this pasto reads format 1",
        "version",
        change_meta(lambda m: m.update(format_version=2)),
    ),
    "another base": Mistake(
        GENERATE,
        "wrong base: random:gpt2",
        "base that the adapter names",
        change_meta(lambda m: m["base"]["spec"].update(source="random:gpt2")),
    ),
    "another base of the same shape": Mistake(
        GENERATE,
        "wrong base: model.layers",
        "It was made for random:llama",
        change_meta(
            lambda m: m["base"]["fingerprints"].update(
                {k: "0" * 64 for k in m["base"]["fingerprints"]}
            )
        ),
    ),
    "an adapter that the Hub cannot give": Mistake(
        ("eval", "me/nothing"), "the Hub cannot be reached", "connection"
    ),
    "an adapter id that is none": Mistake(
        ("eval", "me /nothing"), "is not a repository id", "user/name"
    ),
    # eval
    "an unknown benchmark": Mistake(
        ("eval", "-b", "mini-dilema"),
        "unknown benchmark 'mini-dilema'",
        "Did you mean mini-dilemmas?",
    ),
    "an unknown benchmark for oracles": Mistake(
        ("eval", "--oracles", "-b", "x"), "unknown benchmark 'x'", "mini-dilemmas"
    ),
    "--data for the wrong benchmark": Mistake(
        ("eval", "-b", "mini-dilemmas", "--data", "."),
        "--data is for dailydilemmas",
        "leave --data out",
    ),
    "--data for the recipe's benchmark": Mistake(
        ("eval", "--data", "."), "--data is for dailydilemmas", "leave --data out"
    ),
    "--data without the file": Mistake(
        ("eval", "-b", "dailydilemmas", "--data", "."),
        "dilemma_to_action_to_values_aggregated.csv: cannot be read",
        "--data takes the folder",
    ),
    "a benchmark that the Hub cannot give": Mistake(
        ("eval", "-b", "dailydilemmas"), "DailyDilemmas cannot be loaded from the Hub", "--data DIR"
    ),
    "a damaged benchmark file": Mistake(
        ("eval", "-b", "mine.yaml"),
        "mine.yaml:1: title: Field required",
        "docs/benchmarks.md",
        write("mine.yaml", "format: 1\nname: x\n"),
    ),
    "a value that no row has": Mistake(
        ("eval", "--value", "nonsense"),
        "no row of mini-dilemmas is labelled for 'nonsense'",
        "--value",
    ),
    "a value misspelt": Mistake(
        ("eval", "--oracles", "--value", "honnesty"), "labelled for 'honnesty'", "'honesty'"
    ),
    "an unknown label sign": Mistake(
        ("eval", "--label-sign", "its"), "--label-sign 'its' is not known", "own or original"
    ),
    "an unknown baseline": Mistake(
        ("eval", "--baseline", "vector"), "unknown baseline 'vector'", "control-vector"
    ),
    "coefficients for a comparison": Mistake(
        ("eval", "--equal-kl", "--coeffs", "2"),
        "--coeffs does not go with a comparison",
        "Leave one of them out.",
    ),
    "coefficients that are no numbers": Mistake(
        ("eval", "--coeffs", "-1,up"), "'-1,up' is not a list of numbers", "--coeffs=-1"
    ),
    "no coefficients": Mistake(("eval", "--coeffs="), "'' is not a list of numbers", "--coeffs=-1"),
    "a coefficient that is not finite": Mistake(
        ("eval", "--coeffs=nan"), "nan is not a coefficient", "-1 and +1 are the ends"
    ),
    # generate
    "an empty prompt": Mistake(("generate", ""), "the prompt is empty", "in quotes"),
    "empty standard input": Mistake(
        ("generate", "--stdin"), "the prompt is empty", "one prompt per line", stdin="\n \n"
    ),
    "no prompt": Mistake(("generate",), "give one prompt, or --stdin", "pasto generate --coeff -1"),
    "two kinds of prompt": Mistake(
        (*GENERATE, "--stdin"), "give one prompt, or --stdin", "For instance", stdin="x"
    ),
    "an infinite coefficient": Mistake(
        (*GENERATE, "-c", "inf"), "inf is not a coefficient", "-1 and +1 are the ends"
    ),
    "quantisation of the base": Mistake((*GENERATE, "--quantization", "3bit"), "3bit", "4bit"),
    "quantisation of the base, to eval": Mistake(
        ("eval", "--quantization", "3bit"), "3bit", "4bit"
    ),
    "an unknown device": Mistake((*GENERATE, "--device", "tpu"), "'tpu' is not a device", "cpu"),
    "a device that is not here": Mistake(
        (*GENERATE, "--device", "mps"),
        "this machine has none",
        "device: auto",
        lambda _, patch: patch.setattr(torch.backends.mps, "is_available", lambda: False),
    ),
    # push
    "no token": Mistake(
        ("push", "me/dial"), "no Hub token on this machine", "hf auth login", no_token
    ),
    "no network": Mistake(
        ("push", "me/dial"), "the Hub cannot be reached for me/dial", "connection", some_token
    ),
    "pushing what is on the Hub": Mistake(
        ("push", "me/dial", "-a", "you/dial"), "you/dial is on the Hub already", "local run"
    ),
    # the disk, and losses that explode
    "a full disk": Mistake(
        TRAIN, "history.jsonl: No space left on device", "Free some disk", full_disk
    ),
    "a full disk under the recipe": Mistake(
        TRAIN, "recipe.yaml: No space left on device", "--out", disk_fills_up("recipe.yaml")
    ),
    "a full disk under the adapter": Mistake(
        TRAIN, "No space left on device", "Free some disk", disk_fills_up("pasto.json")
    ),
    "a file where the runs should be": Mistake(
        (*TRAIN, "--out", "file"), "cannot write file/", "--out", write("file", "in the way")
    ),
    "a loss that is not a number": Mistake(
        TRAIN, "the loss is nan at step 1", "training.lr", spoil_the_losses
    ),
    # wrong usage
    "an unknown flag": Mistake(
        ("train", "tiny.yaml", "--epochs", "3"), "No such option", "pasto train -h", code=2
    ),
    "an unknown command": Mistake(("tarin",), "No such command 'tarin'", "pasto -h", code=2),
    "no argument": Mistake(("train",), "Missing argument", "pasto train -h", code=2),
    "a limit of 0": Mistake(("eval", "--limit", "0"), "--limit", "pasto eval -h", code=2),
    "a coefficient that is no number": Mistake(
        (*GENERATE, "-c", "high"), "--coeff", "pasto generate -h", code=2
    ),
    "a negative temperature": Mistake(
        (*GENERATE, "--temperature", "-1"), "a temperature of -1 cannot be sampled at", "0.7 to 1"
    ),
}


TRACEBACKS = {
    "a template with another field": Mistake(
        ("make-pairs", "kind", "cruel", "--templates", "t.txt"),
        "{name}",
        "{persona}",
        write("t.txt", "Be {persona} {name}."),
    ),
    "a template with a lone brace": Mistake(
        ("make-pairs", "kind", "cruel", "--templates", "t.txt"),
        "}",
        "{persona}",
        write("t.txt", "Be {persona} :-}"),
    ),
    "standard input that is not UTF-8": Mistake(
        ("generate", "--stdin"), "UTF-8", "UTF-8", stdin="café".encode("latin-1")
    ),
    "a pasto.json without its recipe, to push": Mistake(
        ("push", "me/dial", "--dry-run"),
        "pasto.json",
        "again",
        change_meta(lambda m: m.update(recipe={})),
    ),
    "a pasto.json with a reference of its own": Mistake(
        GENERATE,
        "reference",
        "again",
        change_meta(lambda m: m["reference"]["logits"].update({"2": [0.0]})),
    ),
}


@pytest.mark.parametrize(
    "mistake",
    [
        *(pytest.param(m, id=name) for name, m in MISTAKES.items()),
        *(pytest.param(m, id=name) for name, m in TRACEBACKS.items()),
    ],
)
def test_mistake(pasto, project, monkeypatch, mistake):
    mistake.prepare(project, monkeypatch)
    said = pasto(*mistake.args, stdin=mistake.stdin)
    assert said.code == mistake.code, said
    if mistake.code == 2:  # typer's own words
        assert mistake.error in said.err and mistake.next_step in said.err
    else:
        assert mistake.error in said.error, said.err
        assert mistake.next_step in said.next_step, said.err
    assert said.out == ""
    assert "hf_notarealtoken" not in said.err


def test_all_mistakes_of_a_recipe_at_once(pasto, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "nmae: x\nmodel: {source: random:llama}\npairs: {words: [a, b]}\nadapter: {rank: 0}\n"
    )
    said = pasto("train", "r.yaml", "--set", "training.lr=fast")
    assert said.code == 1
    for place in (
        "r.yaml:1: nmae:",
        "r.yaml:4: adapter.rank:",
        "--set training.lr=fast:",
        "name: required and missing",
    ):
        assert place in said.err


def test_failures_before_training_leave_no_run(pasto, project, monkeypatch):
    before = contents(project.root)
    powerless_personas(project, monkeypatch)
    assert pasto(*TRAIN).code == 1
    assert contents(project.root) == before


def test_a_full_disk_costs_no_earlier_run(pasto, project, monkeypatch):
    before = contents(project.run)
    disk_fills_up("pasto.json")(project, monkeypatch)
    assert pasto(*TRAIN).code == 1
    monkeypatch.undo()
    monkeypatch.chdir(project.root)
    assert (project.root / "runs" / "latest").resolve() == project.run and contents(
        project.run
    ) == before
    assert not [p for p in (project.root / "runs").rglob(".*")]  # no scratch left


def test_a_missed_certificate_is_an_exit_code_but_keeps_the_adapter(pasto, project):
    # With so little training the dial does nothing but round otherwise: lr is next to nothing, and
    # so is the start.
    nothing = (
        "training.lr=1e-9",
        "adapter.init_theta_std=1e-9",
        "adapter.init_delta_mean=0",
        "adapter.init_delta_std=1e-9",
    )
    said = pasto(*TRAIN, *(x for s in (*nothing, "training.epochs=1") for x in ("--set", s)))
    assert said.code == 1 and said.error.startswith("error: the certificate failed:")
    assert "training.epochs" in said.next_step
    assert "Certificate FAILED" in said.out
    run = (project.root / "runs" / "latest").resolve()
    assert run != project.run
    found = json.loads((run / "adapter" / "pasto.json").read_text())["certificate"]
    assert found["passed"] is False
    said = pasto("push", "me/dial", "--dry-run")
    assert said.code == 0 and "no passed certificate" in said.err and "FAILED" in said.out


def test_json_of_a_certificate_without_intervals(pasto, project):
    said = pasto(
        "train", "tiny.yaml", "--set", "pairs.count=8", "--set", "training.epochs=1", "--json"
    )
    strict(said.out)
    strict((project.root / "runs" / "latest" / "adapter" / "pasto.json").read_text())
