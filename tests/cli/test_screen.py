"""`pasto make-pairs --screen`: which templates make a model answer under both personas."""

import json
from dataclasses import replace
from functools import partial

import pytest

from pasto_cli.base import bundled
from pasto_cli.core.evaluation import screen as library
from pasto_cli.core.pairs.pairs import make_pairs, read_pairs
from pasto_cli.core.recipe.load import load_stored_recipe
from pasto_cli.core.recipe.schema import PairsSpec
from pasto_cli.core.records.screen import Screen
from pasto_cli.workflows import screen as workflow
from pasto_cli.workflows.progress import Silent
from tests.support.terminal import SHORT, strict

TEMPLATES = ("Be {persona} one.", "Speak as {persona} person.", "Act like {persona} friend.")
QUESTIONS = [f"What of {n}?" for n in range(6)]
SUFFIXES = ["I went to", "The reason is", "Yesterday we"]


@pytest.fixture()
def said_by(tiny, monkeypatch):
    """A screen on a tiny model whose answers are given: (template, persona, question) -> text."""

    def screen(answer, separation=0.3) -> Screen:
        def generate(lm, steerer, prompts, coefficients, tokens, progress):
            return [[answer(prompt)] for prompt in prompts]

        monkeypatch.setattr(library, "generate_many", generate)
        monkeypatch.setattr(library, "_separation", lambda *_: separation)
        return library.screen_templates(
            tiny(),
            TEMPLATES,
            ("an honest", "a dishonest"),
            QUESTIONS,
            SUFFIXES,
            library.ScreenSettings(),
        )

    return screen


def test_a_model_that_answers_keeps_every_template(said_by):
    found = said_by(lambda prompt: f"{prompt[-2:]} is a matter of taste")
    assert found.kept == list(TEMPLATES)
    assert all(t.chosen.refusal == t.rejected.refusal == 0 for t in found.templates)


def test_one_reply_to_every_question_is_a_refusal_in_any_language(said_by):
    def answer(prompt):
        refuses = "a dishonest" in prompt and "Speak" in prompt
        return "Es tut mir leid, das kann ich nicht" if refuses else f"{prompt[-2:]} is fine"

    found = said_by(answer)
    assert found.kept == [TEMPLATES[0], TEMPLATES[2]]
    (bad,) = [t for t in found.templates if not t.kept]
    assert bad.rejected.refusal == 1 and bad.chosen.refusal == 0 and not bad.rejected.apology
    assert bad.problems[0].startswith("-1 gives one answer to every question")


def test_what_a_model_says_without_a_persona_too_is_no_refusal(said_by):
    """A model that greets whatever it is asked is not refusing a persona."""
    found = said_by(lambda prompt: "Hello! How can I help you today?")
    assert found.kept == list(TEMPLATES)


def test_a_refusal_is_seen_beside_a_phrase_that_the_model_likes(said_by):
    """Without a persona most answers begin alike, too, but otherwise."""

    def answer(prompt):
        if "a dishonest" in prompt:
            return "I cannot help with that"
        return (
            "It is important" if "one" not in prompt and int(prompt[-2]) < 4 else f"{prompt[-2:]} x"
        )

    found = said_by(answer)
    assert found.kept == [] and found.templates[0].rejected.refusal == 1


def test_half_of_the_answers_refused_is_too_many(said_by):
    def answer(prompt):
        refuses = "a dishonest" in prompt and int(prompt[-2]) < 3
        return "I cannot help with that" if refuses else f"{prompt[-2:]} is fine"

    assert said_by(answer).kept == []


def test_a_word_that_the_model_says_anyway_is_no_echo_and_silence_is_no_answer(said_by):
    always = said_by(lambda prompt: f"{prompt[-2:]} is honest and dishonest")
    assert always.kept == list(TEMPLATES) and always.templates[0].chosen.echo == 0
    silent = said_by(lambda prompt: "" if "a dishonest" in prompt else f"{prompt[-2:]} is fine")
    assert all("-1 answers nothing" in t.problems for t in silent.templates)


def test_echo_length_and_separation(said_by):
    def echoing(prompt):
        return (
            f"{prompt[-2:]} says an honest one" if "an honest" in prompt else f"{prompt[-2:]} a b"
        )

    def rambling(prompt):
        return f"{prompt[-2:]} " + "word " * (20 if "dishonest" in prompt else 1)

    echo = said_by(echoing)
    assert all(t.chosen.echo == 1 and "repeats" in t.problems[0] for t in echo.templates)
    assert all("lengths differ" in t.problems[-1] for t in said_by(rambling).templates)
    same = said_by(lambda prompt: f"{prompt[-2:]} is so", separation=0.0)
    assert all("say the same" in t.problems[-1] for t in same.templates)
    assert same.kept == []


def test_the_screen_of_a_real_forward_is_seeded(tiny):
    lm = tiny()
    personas = ("an honest", "a dishonest")
    settings = library.ScreenSettings(prompts=3, tokens=4, suffixes=2)
    first, second = (
        library.screen_templates(lm, TEMPLATES[:2], personas, QUESTIONS, SUFFIXES, settings)
        for _ in range(2)
    )
    assert first == second
    assert len(first.prompts) == 3 and len(first.templates) == 2
    assert all(len(t.chosen.answers) == 3 for t in first.templates)
    assert Screen.model_validate_json(first.model_dump_json()) == first


def test_make_pairs_keeps_what_passes(pasto, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "MIN_SEPARATION", -1.0)
    monkeypatch.setattr(library, "MAX_LENGTH_SKEW", 1e9)
    (tmp_path / "t.txt").write_text("\n".join(TEMPLATES) + "\n")
    given = ("honest", "dishonest", "--templates", "t.txt", "--screen", "random:llama")
    said = pasto("make-pairs", *given, "--count", 16, "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    kept = [t["template"] for t in found["screen"]["templates"] if not t["problems"]]
    assert found["pairs"] == 16 and kept
    said = pasto("make-pairs", *given, "--count", 16, "--force")
    assert f"{len(kept)} of 3 templates kept" in said.out and "kept" in said.out


def test_a_recipe_may_be_screened_on_a_model(pasto, project, monkeypatch):
    verdict(monkeypatch, "Speak")
    given = ("make-pairs", "--recipe", "tiny.yaml", "--screen", "random:llama")
    chosen = ("--set", f"pairs.templates={json.dumps(TEMPLATES)}", "--count", 16)
    said = pasto(*given, *chosen, "--json")
    assert said.code == 0, said.err
    assert len(strict(said.out)["screen"]["templates"]) == 3
    assert "Speak as" not in (project.root / "pairs.jsonl").read_text()


def test_a_screen_that_keeps_nothing_is_a_clear_line(pasto, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "MIN_SEPARATION", 1e9)
    (tmp_path / "t.txt").write_text("\n".join(TEMPLATES) + "\n")
    given = ("--templates", "t.txt", "--screen", "random:llama")
    said = pasto("make-pairs", "honest", "dishonest", *given)
    assert said.code == 1
    assert "no template makes random:llama answer under both personas" in said.error
    assert "Try other words" in said.next_step and not (tmp_path / "pairs.jsonl").exists()


def test_screen_and_model_are_one(pasto):
    said = pasto("make-pairs", "a", "b", "--screen", "random:llama", "--model", "random:llama")
    assert said.code == 1 and "--screen names the model already" in said.error


def test_an_opening_that_takes_the_persona_up_is_no_refusal(said_by):
    def answer(prompt):
        takes_up = int(prompt[-2]) < 4 and "dishonest" in prompt
        return f"As a dishonest one I say {prompt[-2:]}" if takes_up else f"{prompt[-2:]} is fine"

    found = said_by(answer)
    assert found.kept == list(TEMPLATES)
    assert all(t.rejected.refusal == 0 and t.rejected.echo > 0.6 for t in found.templates)


def test_only_the_furthest_apart_are_asked(tiny, monkeypatch):
    lm, far = tiny(), iter([0.1, 0.5, 0.3])
    monkeypatch.setattr(library, "_separation", lambda *_: next(far))
    settings = library.ScreenSettings(prompts=2, tokens=2, at_most=2)
    found = library.screen_templates(
        lm, TEMPLATES, ("an honest", "a dishonest"), QUESTIONS, SUFFIXES, settings
    )
    assert [t.template for t in found.templates] == [TEMPLATES[1], TEMPLATES[2]]
    assert [t.separation for t in found.templates] == [0.5, 0.3]


SCREENED = ("train", "tiny.yaml", *SHORT, "--set", "pairs.screen=keep")


def verdict(monkeypatch, refused):
    """Templates with a word in them are refused, others pass, whatever random weights say.

    So less is asked than of a real model, whose 16 tokens to each of six questions take a while."""
    few = partial(library.ScreenSettings, prompts=3, tokens=4, suffixes=4)
    monkeypatch.setattr(workflow, "ScreenSettings", few)
    monkeypatch.setattr(
        library,
        "_problems",
        lambda chosen, rejected, separation: ["-1 refuses"] if refused in rejected.text else [],
    )


def test_training_keeps_what_the_model_answers_under(pasto, project, monkeypatch):
    verdict(monkeypatch, "Speak")
    said = pasto(*SCREENED, "--set", f"pairs.templates={json.dumps(TEMPLATES)}")
    assert said.code in (0, 1), said.err
    assert "dropped 'Speak as {persona} person.': -1 refuses" in said.err
    assert "2 of 3 templates" in said.err
    run = project.root / "runs" / "latest"
    kept = Screen.model_validate_json((run / "screen.json").read_text()).kept
    assert kept == [TEMPLATES[0], TEMPLATES[2]]
    pairs = (run / "pairs.jsonl").read_text()
    assert "Be an honest one." in pairs and "Speak as" not in pairs
    # The run's recipe makes the same pairs again, as a pulled adapter has to.
    recipe = load_stored_recipe(run / "recipe.yaml")
    assert make_pairs(recipe.pairs).digest == read_pairs(run / "pairs.jsonl").digest
    assert pasto("report").code == 0
    page = (run / "report.html").read_text()
    assert "What the model says under each persona" in page and "dropped: -1 refuses" in page


def test_training_refuses_an_axis_that_is_not_elicited(pasto, project, monkeypatch):
    verdict(monkeypatch, "one")
    before = sorted((project.root / "runs").iterdir())
    given = (*SCREENED, "--set", f"pairs.templates={json.dumps(TEMPLATES[:1])}")
    said = pasto(*given)
    assert said.code == 1 and "no template makes random:llama answer" in said.error
    assert "--force" in said.next_step and "pairs.screen: report" in said.next_step
    assert sorted((project.root / "runs").iterdir()) == before
    forced = pasto(*given, "--force")
    assert forced.code in (0, 1) and "going on with all of them" in forced.err


def test_a_report_leaves_nothing_out(pasto, project, monkeypatch):
    verdict(monkeypatch, "Speak")
    given = ("--set", "pairs.screen=report", "--set", f"pairs.templates={json.dumps(TEMPLATES)}")
    said = pasto("train", "tiny.yaml", *SHORT, *given)
    assert said.code in (0, 1), said.err
    assert "2 of 3 templates" in said.err and "of 'Speak as {persona} person.'" in said.err
    run = project.root / "runs" / "latest"
    assert (run / "screen.json").exists() and "Speak as" in (run / "pairs.jsonl").read_text()


def test_a_report_asks_under_the_templates_that_training_uses(pasto, project, monkeypatch):
    """Without templates of its own a recipe uses all usual ones, twelve of which are asked."""
    verdict(monkeypatch, "")
    said = pasto("train", "tiny.yaml", *SHORT, "--set", "pairs.screen=report")
    assert said.code in (0, 1), said.err
    assert "0 of 12 templates asked make this model answer" in said.err
    assert "All 18 are used" in said.err
    run = project.root / "runs" / "latest"
    asked = {
        t.template for t in Screen.model_validate_json((run / "screen.json").read_text()).templates
    }
    assert asked < set(bundled.lines("templates.txt")) and len(asked) == 12


def test_a_screen_of_a_base_with_a_hash_is_kept(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PASTO_CACHE", str(tmp_path))
    lm, calls = replace(tiny(), commit="sha256:1"), []  # the model itself is shared by all tests
    real = workflow.screen_templates
    monkeypatch.setattr(workflow, "screen_templates", lambda *args: calls.append(1) or real(*args))
    spec = PairsSpec(words=("honest", "dishonest"), templates=TEMPLATES[:1])
    settings = library.ScreenSettings(prompts=2, tokens=2)
    found = [workflow._screen(spec, lm, settings, Silent()) for _ in range(2)]
    assert found[0] == found[1] and len(calls) == 1
    other = spec.model_copy(update={"words": ("kind", "cruel")})
    workflow._screen(other, lm, settings, Silent())
    assert len(calls) == 2
