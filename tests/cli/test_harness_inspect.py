"""A dial in inspect_ai: `make test-harness` installs it."""

import asyncio

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.workflows import dials, progress

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="inspect_ai is not installed: make test-harness"
)
QUESTIONS = ("What is 1 plus 1?", "Name a street.", "Is it late?")


def ask(api, *messages, **config):
    from inspect_ai.model import GenerateConfig

    asked = GenerateConfig(**{"max_tokens": 6, **config})
    return asyncio.run(api.generate(list(messages), [], "auto", asked))


def user(text):
    from inspect_ai.model import ChatMessageUser

    return ChatMessageUser(content=text)


def opened(name, **how):
    from pasto_cli.workflows.harnesses.inspect_model import DialAPI

    return DialAPI(name, device="cpu", **how)


def in_dial(run, coeff, ids, tokens=6):
    """Greedy text inside the dial; the slow reference."""
    dial = dials.open_dial(str(run), progress.Silent(), packing=False)
    with torch.no_grad(), dial.at(coeff):
        out = dial.lm.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
        )
    return dial.lm.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def test_inspect_finds_a_dial_and_answers_are_those_inside_it(project, tmp_path):
    from inspect_ai.dataset import Sample

    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    task = inspect_ai.Task(
        dataset=[Sample(input=text, target="") for text in QUESTIONS],
        solver=inspect_ai.solver.generate(),
    )
    answers = {}
    for coeff in (0, 4):
        (log,) = inspect_ai.eval(
            task,
            model=f"pasto/{project.run}@{coeff}",
            model_args={"device": "cpu"},
            max_tokens=6,
            log_dir=str(tmp_path / "logs"),
            display="none",
        )
        assert log.status == "success", log.error
        answers[coeff] = [sample.output.completion for sample in log.samples]
        assert answers[coeff] == [
            in_dial(project.run, coeff, dial.lm.chat.prompt(text)) for text in QUESTIONS
        ]
    assert answers[0] != answers[4]


def test_a_conversation_is_rendered_by_the_template(project):
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem

    api = opened(f"{project.run}@-3")
    turns = (
        ChatMessageSystem(content="Be short."),
        user("Hello."),
        ChatMessageAssistant(content="Hi."),
        user("Where?"),
    )
    text = api.dial.lm.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = api.dial.lm.tokenizer(text)["input_ids"]
    output = ask(api, *turns)
    assert output.completion == in_dial(project.run, -3.0, ids)
    assert output.usage.input_tokens == len(ids) and output.usage.output_tokens <= 6


def test_a_stop_sequence_ends_the_text_before_it(project):
    api = opened(f"{project.run}@2")
    whole = ask(api, user("Hello."), max_tokens=12)
    assert whole.choices[0].stop_reason == "max_tokens" and len(whole.completion) > 3
    stop = whole.completion[2:4]
    cut = ask(api, user("Hello."), max_tokens=12, stop_seqs=[stop])
    assert cut.completion == whole.completion[: whole.completion.index(stop)]
    assert cut.choices[0].stop_reason == "stop"


def test_a_seed_makes_samples_repeatable(project):
    api = opened(f"{project.run}@1")
    first, again, other = (
        ask(api, user("Hello."), temperature=1.5, seed=seed, max_tokens=12).completion
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_names_of_models():
    from pasto_cli.workflows.harnesses.inspect_model import split

    assert split("runs/latest@-0.5") == ("runs/latest", -0.5)
    assert split("user/dial") == ("user/dial", 1.0)
    with pytest.raises(PastoError, match="'much' is not a coefficient"):
        split("runs/latest@much")


def test_what_a_dial_cannot_do_is_refused(project):
    from inspect_ai.tool import ToolInfo

    with pytest.raises(PastoError, match="finite"):
        opened(f"{project.run}@nan")
    api = opened(f"{project.run}@1", raw=True)
    assert api.dial.ends == (1.0, 1.0)
    tool = ToolInfo(name="sum", description="Adds.")
    with pytest.raises(PastoError, match="tools"):
        asyncio.run(
            api.generate([user("Hello.")], [tool], "auto", inspect_ai.model.GenerateConfig())
        )
