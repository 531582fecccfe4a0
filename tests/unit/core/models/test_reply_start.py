"""Replies stand after the thoughts that chat templates open, closed as each closes them."""

import pytest

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.random_models import byte_tokenizer

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
HEAD = "{% if add_generation_prompt %}<|assistant|>"
HIDDEN = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
OWN_CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
    "{% endif %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant"
)

# name -> (template, what a prompt ends in, the thought before a reply)
TEMPLATES = {
    "plain": (TURNS + HEAD + "{% endif %}", "hi\n<|assistant|>", "none"),
    "a header with a line break of its own": (
        TURNS + HEAD + "\n{% endif %}",
        "<|assistant|>\n",
        "none",
    ),
    "a bracket": (TURNS + HEAD + "[THINK]{% endif %}", "<|assistant|>[THINK][/THINK]", "opened"),
    "lines": (
        TURNS + HEAD + "<thought>\n{% endif %}",
        "<|assistant|><thought>\n\n</thought>\n\n",
        "opened",
    ),
    "a name of its own": (
        TURNS + HEAD + "<inner_monologue>{% endif %}",
        "<inner_monologue></inner_monologue>",
        "opened",
    ),
    "closed as the template closes it": (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }} </think> {% endif %}"
        "{{ m.content }}\n{% endfor %}" + HEAD + "<think>{% endif %}",
        "<|assistant|><think> </think> ",
        "opened",
    ),
    "switched off": (
        TURNS + HEAD + "{% if deliberate is not false %}<think>\n{% endif %}{% endif %}",
        "hi\n<|assistant|>",
        "none",
    ),
    "Qwen3": (
        TURNS + HEAD + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
        "<think>\n\n</think>\n\n",
        "empty",
    ),
    "a finished turn shows an empty thought": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>\n"
        "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}\n{% endfor %}"
        + HEAD
        + "<think>\n{% endif %}",
        "<think>\n\n</think>\n\n",
        "opened",
    ),
    "the final channel": (
        OWN_CHANNELS + "{% endif %}",
        "<|start|>assistant<|channel|>final<|message|>",
        "channel",
    ),
    "the final channel after an analysis that is always opened": (
        OWN_CHANNELS + "<|channel|>analysis<|message|>{% endif %}",
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        "opened",
    ),
    "an analysis, and turns that show the final channel alone": (
        OWN_CHANNELS.replace("m.thinking", "m.never") + "<|channel|>analysis<|message|>{% endif %}",
        "<|start|>assistant<|channel|>final<|message|>",
        "opened",
    ),
    "Gemma's channel, closed": (
        TURNS + HEAD + "<|channel>thought\n<channel|>{% endif %}",
        "<|channel>thought\n<channel|>",
        "empty",
    ),
    "a turn that cannot end in an answer": (
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        + TURNS
        + HEAD
        + "<think>{% endif %}",
        "<think></think>",
        "opened",
    ),
    "thoughts in finished turns too": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>{% endif %}"
        "{{ m.content }}\n{% endfor %}" + HEAD + "<think>{% endif %}",
        "<think></think>",
        "opened",
    ),
    "no generation prompt at all": (TURNS, "hi\n<|assistant|>", "channel"),
    "content in parts": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content[0].text }}\n{% endfor %}"
        + HEAD
        + "{% endif %}",
        "<|user|>hi\n<|assistant|>",
        "none",
    ),
}


def chat(template: str, system: str | None = None) -> Chat:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_replies_begin_after_the_thought(name):
    template, end, thought = TEMPLATES[name]
    made = chat(template)
    assert made.text("hi").endswith(end)
    assert made.start.thought == thought
    assert (made.start.note is None) == (thought == "none")
    # In a longer conversation likewise, whoever spoke first.
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    text = made.render([{"role": role, "content": content} for role, content in turns])
    assert text.endswith(end.removeprefix("<|user|>").removeprefix("hi\n"))


def test_a_thought_that_nothing_closes_is_refused_with_the_rendered_end():
    made = chat(TURNS + HEAD + "<|deliberation|>\n{% endif %}")
    with pytest.raises(PastoError, match=r"prompts end in '.*<\|deliberation\|>"):
        made.text("hi")


def test_a_token_that_the_model_knows_closes_its_bracket():
    made = chat(TURNS + HEAD + "<|START_THINKING|>{% endif %}")
    made.tokenizer.add_tokens(["<|END_THINKING|>"])
    assert made.text("hi").endswith("<|START_THINKING|><|END_THINKING|>")


SWITCH = (
    TURNS + HEAD + "{% if messages[0].role == 'system' and '/think' in messages[0].content %}"
    "<think>\n{% endif %}{% endif %}"
)
NO_LONGER_EMPTY = SWITCH.replace("<think>\n{% endif %}", "{% else %}<think></think>{% endif %}")


@pytest.mark.parametrize("template", [SWITCH, NO_LONGER_EMPTY])
def test_a_system_message_that_switches_thinking_on_is_refused(template):
    assert "<|assistant|>" in chat(template, "Be brief.").text("hi")
    with pytest.raises(PastoError, match=r"model\.system switches"):
        chat(template, "/think").text("hi")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("fixed", "does not show the user's message: it renders 'fixed'"),
        ("{# nothing #}", "renders nothing"),
        ("{% for m in messages %}{{ m.content", "the model's chat template failed"),
    ],
)
def test_templates_that_cannot_be_used_are_named(template, expected):
    with pytest.raises(PastoError, match=expected) as caught:
        chat(template).text("hi")
    assert "chat template" in caught.value.hint and "model.system" not in caught.value.hint


def test_a_template_that_takes_no_system_message_says_so():
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(PastoError, match="no system role") as caught:
        chat(refuses + TURNS, "Be brief.").text("hi")
    assert "model.system" in caught.value.hint


@pytest.mark.parametrize("front", ["{{ bos_token }}", "\n{{ bos_token }}", "<s>", " \n<s>"])
def test_one_bos_whatever_stands_before_it(front):
    from tokenizers.processors import TemplateProcessing

    made = chat(front + TURNS + HEAD + "{% endif %}")
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.tokenizer.bos_token_id)]
    )
    assert made.prompt("hi").count(made.tokenizer.bos_token_id) == 1
    assert made.encode("hi")[0] == made.tokenizer.bos_token_id
