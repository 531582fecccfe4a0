"""Does this model answer under the personas at all? A screen of every template on the clean base.

A model told "Pretend you're a dishonest person." may refuse, and pairs made from such a template
contrast answering with refusing. So every (template, persona) cell is asked a few everyday
questions, and four numbers are read off the greedy answers:

    refusal      share of answers with the cell's commonest opening, less that without a persona;
                 openings that repeat the persona's words do not count, since they take it up
    echo         share of answers that repeat a word of the persona, less that without one
    length skew  longer mean length of the two personas over the shorter one
    separation   T_cho - T_rej on openings of the reply (`certificate`), nats per token

Refusal needs no list of phrases and no language: a model that refuses says the same thing to every
question. No benchmark is asked: templates must not be chosen by what is measured later.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pasto_cli.base.format import substitute
from pasto_cli.core.evaluation.certificate import measure_persona_llr
from pasto_cli.core.models.chat import tokenise_pairs
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.openings import (
    MAX_REFUSAL,
    commonest_opening,
    echoes,
    opening,
    takes_up,
)
from pasto_cli.core.pairs.pairs import Pair
from pasto_cli.core.records.screen import (
    Screen,
    ScreenedAnswer,
    ScreenedCell,
    ScreenedTemplate,
)
from pasto_cli.core.steering.generation import generate_many
from pasto_cli.core.steering.steerer import NoOpSteerer

MAX_ECHO = 0.9
"""Where every answer speaks of the persona, none speaks as it. "As a dishonest person, you should
not ..." is how small models take it up, so that a share of such answers speaks against nothing."""
MAX_LENGTH_SKEW = 2.5
MIN_SEPARATION = 0.02
"""Nats per token; below it the two personas say the same."""
APOLOGIES = ("sorry", "cannot", "can't", "unable", "as an ai", "apologi")
"""Parts of phrases with which English-speaking models refuse; a hint for readers only."""


class ScreenSettings(NamedTuple):
    """How much is asked."""

    prompts: int = 6
    tokens: int = 16
    at_most: int | None = None
    """Ask only those templates whose personas are furthest apart on openings; None asks all."""
    suffixes: int = 6
    seed: int = 0
    budget: int = 512
    """Nodes of one token tree."""


def screen_templates(
    lm: LoadedModel,
    templates: Sequence[str],
    personas: tuple[str, str],
    questions: Sequence[str],
    suffixes: Sequence[str],
    settings: ScreenSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> Screen:
    """Ask every (template, persona) cell the same questions and say which templates are of use.

    Args:
        lm: The clean base model.
        templates: With `{persona}`.
        personas: Positive and negative, as they stand in a template.
        questions: Everyday questions; a seeded few are asked.
        suffixes: Openings of the reply, for the separation.
        settings: How much is asked.
        progress: Told how many templates' worth of answers each batch gave.
    """
    rng = random.Random(settings.seed)
    openings = rng.sample(list(suffixes), min(settings.suffixes, len(suffixes)))
    apart = {
        t: _separation(lm, [substitute(t, persona=p) for p in personas], openings, settings.budget)
        for t in templates
    }
    # Openings cost one packed pass, answers many: the furthest apart are asked.
    wanted = sorted(templates, key=lambda t: -apart[t])[: settings.at_most]
    templates = [t for t in templates if t in wanted]
    asked = rng.sample(list(questions), min(settings.prompts, len(questions)))
    cells = [[substitute(t, persona=p) for p in personas] for t in templates]
    prefixes = [f"{cell}\n\n" for pair in cells for cell in pair]
    *answers, neutral = _ask(lm, [*prefixes, ""], asked, settings.tokens, progress)
    found = []
    for index, template in enumerate(templates):
        chosen, rejected = (
            _cell(lm, cells[index][s], personas[s], asked, answers[2 * index + s], neutral)
            for s in (0, 1)
        )
        separation = apart[template]
        found.append(
            ScreenedTemplate(
                template=template,
                separation=separation,
                chosen=chosen,
                rejected=rejected,
                problems=_problems(chosen, rejected, separation),
            )
        )
    return Screen(
        model=lm.spec.source,
        commit=lm.commit,
        prompts=asked,
        tokens=settings.tokens,
        neutral=_answers(asked, neutral),
        templates=found,
    )


def _ask(
    lm: LoadedModel,
    prefixes: Sequence[str],
    asked: Sequence[str],
    tokens: int,
    progress: Callable[[int], None],
) -> list[list[str]]:
    """For each prefix the greedy answers to all questions after it."""
    messages = [prefix + question for prefix in prefixes for question in asked]
    found = generate_many(lm, NoOpSteerer(), messages, [0.0], tokens, progress=progress)
    texts = [answers[0] for answers in found]  # at one coefficient
    return [texts[i : i + len(asked)] for i in range(0, len(texts), len(asked))]


def _cell(
    lm: LoadedModel,
    text: str,
    persona: str,
    asked: Sequence[str],
    answers: Sequence[str],
    neutral: Sequence[str],
) -> ScreenedCell:
    """One cell's figures, each less what the same questions get without a persona."""
    # Openings that take the persona up are no refusals, unless there are no others.
    others = [answer for answer in answers if not takes_up(persona, answer)]
    commonest, count = commonest_opening([_tokens(lm, answer) for answer in others or answers])
    share = count / len(answers) if others else 0.0
    # Of the same opening: a model that greets whatever it is asked refuses nothing by that.
    without = sum(opening(_tokens(lm, text)) == commonest for text in neutral) / len(neutral)
    echo, echo_without = (
        sum(echoes(persona, text) for text in texts) / len(texts) for texts in (answers, neutral)
    )
    lengths = [len(_tokens(lm, answer)) for answer in answers]
    return ScreenedCell(
        text=text,
        refusal=max(0.0, share - without),
        echo=max(0.0, echo - echo_without),
        length=sum(lengths) / len(lengths),
        commonest=lm.tokenizer.decode(list(commonest)),
        apology=any(p in lm.tokenizer.decode(list(commonest)).lower() for p in APOLOGIES),
        answers=_answers(asked, answers),
    )


def _answers(asked: Sequence[str], texts: Sequence[str]) -> list[ScreenedAnswer]:
    return [ScreenedAnswer(prompt=p, text=t) for p, t in zip(asked, texts, strict=True)]


def _tokens(lm: LoadedModel, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _separation(
    lm: LoadedModel, cells: Sequence[str], openings: Sequence[str], budget: int
) -> float:
    """T_cho - T_rej of one template, nats per token; 0 where the tokenizer spoils every opening."""
    pairs = [
        Pair(chosen=cells[0], rejected=cells[1], neutral="Please say something.", suffix=suffix)
        for suffix in openings
    ]
    tokens, _ = tokenise_pairs(pairs, lm.chat)
    if not tokens:
        return 0.0
    return measure_persona_llr(lm, NoOpSteerer(), tokens, [], budget).span


def _problems(chosen: ScreenedCell, rejected: ScreenedCell, separation: float) -> list[str]:
    """What speaks against a template, in words."""
    problems = []
    for side, cell in (("+1", chosen), ("-1", rejected)):
        if cell.length == 0:
            problems.append(f"{side} answers nothing")
        if cell.refusal >= MAX_REFUSAL:
            how = "refuses" if cell.apology else "gives one answer to every question"
            problems.append(f"{side} {how}: {cell.commonest!r} ({cell.refusal:.0%})")
        if cell.echo > MAX_ECHO:
            problems.append(f"{side} repeats the persona's words ({cell.echo:.0%})")
    shorter, longer = sorted((chosen.length, rejected.length))
    if longer > MAX_LENGTH_SKEW * max(shorter, 1.0):
        problems.append(f"lengths differ ({chosen.length:.0f} and {rejected.length:.0f} tokens)")
    if separation < MIN_SEPARATION:
        problems.append(f"the personas say the same ({separation:.3f} nats per token)")
    return problems
