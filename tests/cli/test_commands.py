"""Every command end to end on a small model with random weights: what it prints, what it writes,
what it leaves alone."""

import ast
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import pasto_cli
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.disturbance import LARGEST_COEFFICIENT
from pasto_cli.core.pairs.pairs import read_pairs
from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import parse
from pasto_cli.core.report.card import PUBLISHED_SIGN
from tests.support.terminal import OWN, ROOT, SHORT, TINY, contents, strict

PROMPT = "Should I tell my boss that I overslept?"


# ------------------------------------------------------------------------------------------------------------
# make-pairs


def test_make_pairs_from_two_words(pasto, tmp_path):
    said = pasto("make-pairs", "honest", "dishonest")
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    assert len(pairs) == 800
    assert all(
        "an honest" in p.chosen and "a dishonest" in p.rejected and "honest" not in p.neutral
        for p in pairs
    )
    assert all(p.chosen.replace("an honest", "a dishonest") == p.rejected for p in pairs)
    for heading in (
        "chosen (+1)",
        "rejected (-1)",
        "neutral",
        "opening of the reply",
        "words of the opening",
    ):
        assert heading in said.out
    for source in {p.source for p in pairs}:
        assert source in said.out
    assert pairs[0].suffix.split()[0] in said.out  # the preview shows the pairs themselves
    assert "800 pairs in pairs.jsonl; none dropped" in said.out


def test_make_pairs_takes_persona_phrases_as_they_stand(pasto, tmp_path):
    said = pasto(
        "make-pairs", "--personas", "a cheerful, joyful", "a gloomy, miserable", "--count", 20
    )
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    assert len(pairs) == 20
    assert all(
        p.chosen.count("a cheerful, joyful") == 1 and p.rejected.count("a gloomy, miserable") == 1
        for p in pairs
    )


def test_make_pairs_from_own_openings_and_templates(pasto, tmp_path):
    openings = [f"On day {n} the captain wrote" for n in range(12)]
    (tmp_path / "ship.txt").write_text(
        "\n".join([*openings, "A closed sentence.", openings[0], "", "   "]) + "\n"
    )
    (tmp_path / "templates.txt").write_text("Be {persona} sailor.\nSpeak as {persona} cook.\n")
    said = pasto(
        "make-pairs",
        "kind",
        "cruel",
        "--suffixes",
        "ship.txt",
        "--templates",
        "templates.txt",
        "--out",
        "own.jsonl",
    )
    assert said.code == 0, said.err
    pairs = read_pairs(tmp_path / "own.jsonl").pairs
    assert {p.suffix for p in pairs} == set(openings)
    assert {p.chosen for p in pairs} == {"Be a kind sailor.", "Speak as a kind cook."}
    assert {p.source for p in pairs} == {"ship"}
    assert "dropped 1: closed sentence" in said.out and "dropped 1: duplicate suffix" in said.out
    assert f"{len(pairs)} pairs in own.jsonl" in said.out and "none dropped" not in said.out
    assert not (tmp_path / "pairs.jsonl").exists()


def test_make_pairs_draws_by_seed(pasto, tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert (
            pasto(
                "make-pairs", "honest", "dishonest", "--count", 30, "--seed", seed, "--out", out
            ).code
            == 0
        )
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_make_pairs_json(pasto, tmp_path):
    said = pasto("make-pairs", "honest", "dishonest", "--count", 40, "--json")
    found = strict(said.out)
    pairs = read_pairs(tmp_path / found["file"]).pairs
    assert found["pairs"] == len(pairs) == sum(found["sources"].values()) == 40
    assert {k: len(v) for k, v in found["lengths"].items()} == found["sources"]
    assert sorted(sum(found["lengths"].values(), [])) == sorted(
        len(p.suffix.split()) for p in pairs
    )
    assert found["dropped"] == {}


def test_make_pairs_measures_with_a_models_tokenizer(pasto, tmp_path):
    from pasto_cli.core.models.chat import tokenise_pairs
    from pasto_cli.core.models.loading import load_chat
    from pasto_cli.core.recipe.schema import ModelSpec

    words = ("make-pairs", "honest", "dishonest", "--count", 16, "--model", "random:llama")
    found = strict(pasto(*words, "--json").out)
    pairs = read_pairs(tmp_path / "pairs.jsonl").pairs
    tokens, dropped = tokenise_pairs(pairs, load_chat(ModelSpec(source="random:llama")))
    assert not dropped
    assert sorted(sum(found["lengths"].values(), [])) == sorted(len(t.chosen) for t in tokens)
    assert found["length_unit"].startswith("tokens")
    assert "tokens of the chosen side" in pasto(*words, "--force").out


def test_make_pairs_from_a_recipe(pasto, tmp_path):
    said = pasto(
        "make-pairs",
        "--recipe",
        TINY,
        "--count",
        10,
        "--set",
        "pairs.words=[brave, timid]",
        "--json",
    )
    found = strict(said.out)
    assert found["pairs"] == 10 and found["length_unit"].startswith(
        "tokens"
    )  # the recipe names a model
    assert all(
        "a brave" in p.chosen and "a timid" in p.rejected
        for p in read_pairs(tmp_path / "pairs.jsonl").pairs
    )


def test_make_pairs_replaces_nothing_unless_forced(pasto, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    said = pasto("make-pairs", "honest", "dishonest")
    assert (
        (said.code, said.out) == (1, "")
        and "pairs.jsonl exists" in said.error
        and "--force" in said.next_step
    )
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"
    assert pasto("make-pairs", "honest", "dishonest", "--count", 9, "--force").code == 0
    assert len(read_pairs(tmp_path / "pairs.jsonl").pairs) == 9


# -----------------------------------------------------------------------------------------------------------------
# train


def test_train_leaves_a_whole_run(trained):
    root, run, said = trained
    assert sorted(p.name for p in (root / "runs").iterdir()) == sorted([run.name, "latest"])
    assert run.name.endswith("-tiny")
    assert sorted(contents(run)) == [
        "adapter/README.md",
        "adapter/adapter.safetensors",
        "adapter/pasto.json",
        "history.jsonl",
        "pairs.jsonl",
        "recipe.yaml",
    ]
    assert load_recipe(run / "recipe.yaml") == load_recipe(TINY, SHORT[1::2])
    assert len(read_pairs(run / "pairs.jsonl").pairs) == 24
    meta = strict((run / "adapter" / "pasto.json").read_text())
    assert sum(meta["num_pairs"].values()) == 24
    assert meta["certificate"]["passed"] == (said.code == 0)
    assert all(
        torch.isfinite(t).all() for t in load_file(run / "adapter" / "adapter.safetensors").values()
    )
    assert "Certificate passed" in said.out if said.code == 0 else "Certificate FAILED" in said.out
    assert f"{run.name}/adapter" in said.out


def test_train_history_has_a_line_for_each_step(trained):
    lines = [strict(line) for line in (trained.run / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if not line["validation"]]
    checks = [line for line in lines if line["validation"]]
    assert [line["step"] for line in steps] == list(range(1, steps[-1]["total_steps"] + 1))
    assert [line["epoch"] for line in checks] == [1, 2]
    for line in lines:
        assert {
            "epoch",
            "step",
            "total_steps",
            "loss",
            "parts",
            "diagnostics",
            "lr",
            "seconds",
        } <= set(line)
        assert math.isfinite(line["loss"]) and {"projection", "coherence", "monotonicity"} <= set(
            line["parts"]
        )
    training = strict((trained.run / "adapter" / "pasto.json").read_text())["training"]
    best = min(checks, key=lambda line: line["loss"])
    assert training["steps"] == len(steps) and training["best_epoch"] == best["epoch"]
    assert training["best_loss"] == pytest.approx(best["loss"], abs=1e-5)
    for line in checks:
        assert f"step {line['step']}/{line['total_steps']}" in trained.said.err


def test_train_twice_gives_the_same_adapter(pasto, trained):
    assert pasto("train", TINY, *SHORT, "--out", "again").code == trained.said.code
    first = load_file(trained.run / "adapter" / "adapter.safetensors")
    second = load_file("again/latest/adapter/adapter.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (trained.run / "pairs.jsonl").read_bytes() == Path(
        "again/latest/pairs.jsonl"
    ).read_bytes()


def test_train_on_a_pairs_file_with_json(pasto, project):
    assert pasto("make-pairs", "kind", "cruel", "--count", 20, "--seed", 5).code == 0
    settings = (
        "--set",
        "pairs={file: pairs.jsonl}",
        "--set",
        "training.epochs=1",
        "--set",
        "name=kindness",
    )
    said = pasto("train", "tiny.yaml", *settings, "--json")
    found = strict(said.out)
    assert said.code == (0 if found["certificate"]["passed"] else 1)
    run = project.root / found["run"]
    assert run.name.endswith("-kindness")
    assert (project.root / "runs" / "latest").resolve() == run  # the newest finished run
    assert read_pairs(run / "pairs.jsonl") == read_pairs(project.root / "pairs.jsonl")
    assert found["result"]["steps"] >= 1 and not found["result"]["interrupted"]
    assert set(found["certificate"]["strength"]) == {"-1", "1"}
    assert (
        strict((run / "adapter" / "pasto.json").read_text())["certificate"] == found["certificate"]
    )


# ------------------------------------------------------------------------------------------------------------------
# eval


def test_eval_writes_every_row_and_says_that_scores_are_undefined(pasto, project):
    before = contents(project.run / "adapter")
    said = pasto("eval", "--benchmark", "mini-dilemmas", "--limit", 4)
    assert said.code == 0, said.err
    run = parse((project.run / "eval" / "mini-dilemmas.json").read_text())
    strict((project.run / "eval" / "mini-dilemmas.json").read_text())
    kinds = [row.kind for row in run.rows]
    assert (kinds.count("target"), len(kinds) - kinds.count("target")) == (8, 80)
    assert len({row.group for row in run.rows if row.kind == "target"}) == 4
    assert run.coefficients == [-1, 0, 1] and run.partial and run.value == "honesty"
    assert all(set(row.answers) == {"-1", "0", "1"} for row in run.rows)
    assert all(0 <= answer.pmass <= 1 for row in run.rows for answer in row.answers.values())
    assert math.isnan(run.scores["steering_f1"]["value"])
    assert (
        "n = 8 rows of 4 dilemmas, 80 control rows" in said.out
        and "part of the benchmark" in said.out
    )
    assert "Scores are undefined" in said.out and "invalid answers began with" in said.out
    assert "every row:" in said.out
    assert contents(project.run / "adapter") == before


def test_eval_json_at_more_coefficients(pasto, project):
    said = pasto(
        "eval",
        project.run,
        "-b",
        "mini-dilemmas",
        "--limit",
        4,
        "--coeffs=-1,-0.5,0,0.5,1",
        "--json",
    )
    assert said.code == 0, said.err
    strict(said.out)
    run = parse(said.out)
    assert run.coefficients == [-1, -0.5, 0, 0.5, 1]
    assert all(set(row.answers) == {"-1", "-0.5", "0", "0.5", "1"} for row in run.rows)
    written = parse((project.run / "eval" / "mini-dilemmas.json").read_text())
    assert written.rows == run.rows and written.provenance == run.provenance
    # A coefficient's answers do not depend on which others were asked for: at 0 they are the base
    # model's.
    assert run.provenance["base"] == "random:llama" and run.provenance["quantization"] == "none"


def test_eval_of_a_benchmark_file_with_an_adapter_outside_a_run(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    shutil.copytree(project.run / "adapter", project.root / "bare")
    before = contents(project.root)
    said = pasto("eval", "bare", "-b", "own.yaml", "--value", "candour", "--coeffs", "-1,1")
    assert said.code == 0, said.err
    assert "A benchmark of our own: candour, n = 2 rows of 1 dilemmas, 4 control rows" in said.out
    assert (
        "every row:" not in said.out and contents(project.root) == before
    )  # there is no run to write to
    said = pasto("eval", "-b", "own.yaml", "--value", "peace", "--json")
    labels = {row.id: row.labels["peace"] for row in parse(said.out).rows if row.kind == "target"}
    assert labels == {"d1/to_do": -1, "d1/not_to_do": 1}
    assert parse((project.run / "eval" / "own.json").read_text()).value == "peace"


def test_eval_with_the_published_label_sign_says_so(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    said = pasto("eval", *options, "--label-sign", "original")
    assert said.code == 0 and "LABEL SIGN ORIGINAL" in said.out
    (first,) = (project.run / "eval").iterdir()
    assert parse(first.read_text()).label_sign == "original"
    assert parse(pasto("eval", *options, "--json").out).label_sign == "own"
    assert len(list((project.run / "eval").iterdir())) == 2  # neither overwrites the other
    card = pasto("push", "me/dial", "--dry-run").out
    assert card.count("A benchmark of our own") == 2 and card.count(PUBLISHED_SIGN) == 1


def test_eval_compares_with_baselines(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    methods = ("prompt", "engineered-prompt", "control-vector", "mean-diff", "random-rotation")
    assert pasto("eval", *options).code == 0
    said = pasto("eval", *options, *(x for name in methods for x in ("--baseline", name)))
    assert said.code == 0, said.err
    assert all(
        name.split("-")[0] in said.out for name in ("adapter", *methods)
    )  # a long name may be folded
    assert "n = 2 rows of 1 dilemmas" in said.out
    runs = [parse(path.read_text()) for path in (project.run / "eval").iterdir()]
    assert {run.provenance.get("method") for run in runs} == {None, "adapter", *methods}
    rows = {row.id: row.answers["0"].y for row in runs[0].rows}
    for run in runs:  # every method is the base model at 0
        assert {row.id: row.answers["0"].y for row in run.rows} == pytest.approx(rows, abs=1e-3)


def test_card_lists_what_was_measured_once(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    options = ("-b", "own.yaml", "--value", "candour")
    assert pasto("eval", *options).code == pasto("eval", *options, "--baseline", "prompt").code == 0
    assert pasto("push", "me/dial", "--dry-run").out.count("A benchmark of our own") == 1


def test_eval_at_equal_disturbance(pasto, project):
    (project.root / "own.yaml").write_text(OWN)
    said = pasto(
        "eval",
        "-b",
        "own.yaml",
        "--value",
        "candour",
        "--baseline",
        "mean-diff",
        "--equal-kl",
        "--json",
    )
    assert said.code == 0, said.err
    found = strict(said.out)
    assert [record["method"] for record in found] == ["adapter", "mean-diff"]
    for record in found:
        assert set(record) == {"method", "strength", "scores", "disturbance"}
        for strength, coefficient in zip(record["strength"], ("1", "-1"), strict=True):
            kl = record["disturbance"][coefficient]["kl_p95"]["value"]
            if strength == LARGEST_COEFFICIENT:  # what cannot be reached is said
                assert (
                    kl < 1 and f"warning: {record['method']}: no coefficient up to 1024" in said.err
                )
            else:
                assert strength > 0 and kl == pytest.approx(1, abs=0.1)


def test_eval_oracles_need_no_model(pasto, tmp_path):
    said = pasto("eval", "--oracles", "--json")
    found = strict(said.out)
    assert said.code == 0 and (found["benchmark"], found["value"], found["label_sign"]) == (
        "mini-dilemmas",
        "honesty",
        "own",
    )
    scores = {oracle["name"]: oracle for oracle in found["oracles"]}
    assert {"perfect", "inverted", "yes-sayer", "no-op"} <= set(scores)
    assert all(s["f1"]["low"] <= s["f1"]["value"] <= s["f1"]["high"] for s in scores.values())
    assert max(scores, key=lambda name: scores[name]["f1"]["value"]) == "perfect"
    assert scores["inverted"]["f1"]["value"] == scores["no-op"]["f1"]["value"] == 0
    said = pasto("eval", "--oracles", "--label-sign", "original")
    assert "LABEL SIGN ORIGINAL" in said.out and f"n = {found['rows']} labelled rows" in said.out
    assert all(name in said.out for name in scores)
    assert list(tmp_path.iterdir()) == []


def test_eval_prints_a_long_path_whole(pasto, project):
    (project.root / "own.yaml").write_text(OWN.replace("name: own", f"name: own-{'x' * 60}"))
    assert f"own-{'x' * 60}.json\n" in pasto("eval", "-b", "own.yaml", "--value", "candour").out


# --------------------------------------------------------------------------------------------------------------
# generate


def texts(said):
    assert said.code == 0, said.err
    return [record["text"] for record in strict(said.out)]


def test_generate_streams_one_coefficient(pasto, project, monkeypatch):
    from pasto_cli.cli import generate

    pieces, real = [], generate._write
    monkeypatch.setattr(generate, "_write", lambda piece: (pieces.append(piece), real(piece)))
    said = pasto("generate", PROMPT, "--coeff", "-1", "--max-new-tokens", 12)
    assert said.code == 0, said.err
    assert pieces and said.out == "".join(pieces) and said.out.endswith("\n")
    assert [said.out.strip()] == texts(
        pasto("generate", PROMPT, "-c", "-1", "--max-new-tokens", 12, "--json")
    )
    assert project.run.name in said.err  # which adapter "the latest" is


def test_generate_side_by_side(pasto, project):
    prompt = "Describe [your] hometown."  # brackets are rich's markup: they must come through
    options = ("--max-new-tokens", 6, "-a", project.run / "adapter")
    coefficients = ("--coeff", "-1", "--coeff", "0", "--coeff", "1")
    said = pasto("generate", *coefficients, prompt, *options)
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == prompt
    assert all(heading in said.out for heading in (" -1 ", " 0 (base) ", " +1 "))
    found = texts(pasto("generate", *coefficients, prompt, *options, "--json"))
    assert all(text.split()[0] in said.out for text in found if text.split())
    assert len(found) == 3
    # The dial does something: a short training of random weights moves their greedy text only where
    # it is turned far.
    far = texts(
        pasto(
            "generate",
            "--coeff",
            "-40",
            "--coeff",
            "0",
            "--coeff",
            "40",
            prompt,
            *options,
            "--json",
        )
    )
    assert far[1] == found[1] and len(set(far)) > 1
    assert found == [
        texts(pasto("generate", "-c", a, prompt, *options, "--json"))[0] for a in (-1, 0, 1)
    ]


def test_generate_from_standard_input(pasto, project):
    said = pasto(
        "generate",
        "--stdin",
        "-c",
        "-1",
        "-c",
        "1",
        "--max-new-tokens",
        5,
        "--json",
        stdin="One thing.\n\n Another. \n",
    )
    records = strict(said.out)
    assert [(r["prompt"], r["coeff"]) for r in records] == [
        ("One thing.", -1),
        ("One thing.", 1),
        ("Another.", -1),
        ("Another.", 1),
    ]
    streamed = pasto(
        "generate", "--stdin", "-c", "1", "--max-new-tokens", 5, stdin="One thing.\nAnother.\n"
    )
    assert [r["text"] for r in records[1::2]] == [
        line.strip() for line in streamed.out.splitlines()
    ]


def base_text(lm, prompt, tokens):
    ids = torch.tensor([lm.chat.prompt(prompt)])
    with torch.no_grad():
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
        )
    return lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_generate_at_0_is_the_base_model(pasto, project, tiny):
    found = texts(pasto("generate", PROMPT, "-c", "1", "-c", "0", "--max-new-tokens", 24, "--json"))
    assert found[1] == base_text(tiny(), PROMPT, 24) != found[0]


def test_generate_samples_by_seed(pasto, project):
    def sample(seed, *coefficients):
        options = [x for a in coefficients for x in ("-c", a)]
        said = pasto(
            "generate",
            PROMPT,
            *options,
            "--temperature",
            1,
            "--seed",
            seed,
            "--max-new-tokens",
            16,
            "--json",
        )
        return texts(said)

    first = sample(7, 1)
    assert first == sample(7, 1) != sample(8, 1)
    assert sample(7, -1, 1)[1] == first[0]  # a sample does not depend on its neighbours
    assert first != texts(pasto("generate", PROMPT, "-c", "1", "--max-new-tokens", 16, "--json"))


# ------------------------------------------------------------------------------------------------------------------
# push


@pytest.fixture()
def no_upload(monkeypatch):
    from pasto_cli.core.artifact import hub

    def refuse(*_):
        pytest.fail("something was uploaded")

    monkeypatch.setattr(hub, "upload", refuse)


def test_push_dry_run_prints_the_runs_own_facts(pasto, project, no_upload):
    (project.root / "own.yaml").write_text(OWN)
    assert pasto("eval", "-b", "own.yaml", "--value", "candour").code == 0
    before = contents(project.root)
    said = pasto("push", "someone/tiny-dial", "--dry-run")
    assert said.code == 0, said.err
    meta = strict((project.run / "adapter" / "pasto.json").read_text())
    pairs = meta["num_pairs"]
    facts = (
        "`random:llama`",
        "LlamaForCausalLM",
        "rank 16,",
        meta["personas"][0],
        meta["personas"][1],
        meta["created"],
        f"{pairs['train']} training, {pairs['validation']} validation, {pairs['certificate']} "
        f"certificate",
        f"{len(meta['base']['fingerprints'])} modules",
        f"{meta['largest_angle']:.1f} degrees",
        meta["pairs_sha256"][:16],
        f"{meta['training']['steps']} steps, best epoch {meta['training']['best_epoch']}",
        "**passed**" if meta["certificate"]["passed"] else "FAILED",
        f"{meta['certificate']['strength']['1']['value']:+.2f}",
        f"torch {meta['versions']['torch']}",
        "pasto generate --adapter someone/tiny-dial",
        'pasto_cli.load("someone/tiny-dial")',
        "A benchmark of our own",
        "n = 2 rows in 1 dilemmas, 4 control rows",
    )
    for fact in facts:
        assert fact in said.out, fact
    assert "THIS" not in said.out and "nan" not in said.out
    assert "would upload to someone/tiny-dial:" in said.out
    for name in ("adapter.safetensors", "pasto.json", "README.md"):
        assert f"  {name}  " in said.out
    assert contents(project.root) == before


def test_push_dry_run_json(pasto, project, no_upload):
    found = strict(pasto("push", "someone/tiny-dial", "-a", project.run, "--dry-run", "--json").out)
    assert found["repo"] == "someone/tiny-dial" and found["address"] is None
    folder = project.run / "adapter"
    sizes = {name: (folder / name).stat().st_size for name in ("adapter.safetensors", "pasto.json")}
    assert found["files"] == {**sizes, "README.md": len(found["card"].encode())}
    front = found["card"].split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "pasto"


# ----------------------------------------------------------------------------------------------------------------
# recipe


def test_recipe_schema(pasto):
    schema = strict(pasto("recipe", "--schema").out)
    assert set(schema["properties"]) == set(Recipe.model_fields)


def test_recipe_prints_yaml_that_loads_again(pasto, tmp_path):
    said = pasto(
        "recipe",
        ROOT / "recipes" / "quickstart.yaml",
        "--set",
        "adapter.rank=32",
        "--set",
        "losses=original",
    )
    assert said.code == 0 and said.err == ""
    (tmp_path / "whole.yaml").write_text(said.out)
    again = load_recipe(tmp_path / "whole.yaml")
    assert again == load_recipe(
        ROOT / "recipes" / "quickstart.yaml", ["adapter.rank=32", "losses=original"]
    )
    assert again.adapter.rank == 32 and again.losses.neutral is None
    assert pasto("recipe", "whole.yaml").out == said.out


# ------------------------------------------------------------------------------------------------------
# help and Python


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


def test_python_interface(trained, tiny):
    model, tokenizer, dial = pasto_cli.load(str(trained.run))
    assert dial.meta.recipe["name"] == "tiny"
    ids = torch.tensor([tokenizer("Tell me.")["input_ids"]] * 2)

    def logits():
        with torch.no_grad():
            return model(input_ids=ids).logits

    base = logits()
    with torch.no_grad():
        assert torch.equal(
            base, tiny().model(input_ids=ids).logits
        )  # outside `at` the model is the untouched base
    with dial.at(-1.0):
        down = logits()
    with pasto_cli.steer(model, -1.0):
        assert torch.equal(logits(), down)
    with dial.at([0.0, -1.0]):
        rows = logits()
    assert not torch.allclose(down, base)
    torch.testing.assert_close(rows, torch.stack([base[0], down[1]]), rtol=0, atol=1e-5)
    assert torch.equal(logits(), base)
    with pytest.raises(RuntimeError, match="stop"), dial.at(1.0):
        raise RuntimeError("stop")
    assert torch.equal(logits(), base)

    found = list(dial.generate(PROMPT, coeffs=[-1, 0, 1], max_new_tokens=16))
    assert [a for a, _ in found] == [-1, 0, 1]
    assert found[1][1] == base_text(tiny(), PROMPT, 16)
    one, two = (list(dial.generate(PROMPT, [1.0], 8, temperature=1.0, seed=s)) for s in (1, 1))
    assert one == two
    with pytest.raises(PastoError, match="not finite"), dial.at(math.nan):
        pass


def test_steering_a_model_without_a_dial():
    with pytest.raises(PastoError, match="no dial"), pasto_cli.steer(torch.nn.Linear(1, 1), 1.0):
        pass
