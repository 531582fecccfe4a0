"""Which templates make a model answer under both personas. Records only, no torch."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScreenedAnswer(_Record):
    """What the clean base model said to one prompt."""

    prompt: str
    text: str
    """Greedy, cut off after a few tokens."""


class ScreenedCell(_Record):
    """One template filled with one persona."""

    text: str
    """The filled template."""
    refusal: float
    """Share of answers that begin with the cell's commonest opening, minus that of the same prompts
    without a persona: near 1 where every question gets the same reply, in any language."""
    echo: float
    """Share of answers that repeat a word of the persona."""
    length: float
    """Mean length of the answers, tokens; cut off at the limit."""
    commonest: str
    """The commonest opening."""
    apology: bool
    """Whether that opening is a known phrase of refusal. A hint for the reader, never a verdict."""
    answers: list[ScreenedAnswer]


class ScreenedTemplate(_Record):
    """One template under both personas."""

    template: str
    separation: float
    """T_cho - T_rej on some openings of the reply, nats per token: how far the personas differ."""
    chosen: ScreenedCell
    rejected: ScreenedCell
    problems: list[str]
    """Why it is left out; empty for one that is kept."""

    @property
    def kept(self) -> bool:
        """Whether pairs are made with it."""
        return not self.problems


class Screen(_Record):
    """Every template on one base model."""

    model: str
    commit: str | None
    prompts: list[str]
    tokens: int
    """Longest answer."""
    neutral: list[ScreenedAnswer]
    """What the model says without a persona."""
    templates: list[ScreenedTemplate]

    @property
    def kept(self) -> list[str]:
        """Templates that passed, in their order."""
        return [t.template for t in self.templates if t.kept]
