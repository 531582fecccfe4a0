"""How much a server takes on, whichever engine decodes."""

from typing import NamedTuple


class Limits(NamedTuple):
    """How much is taken on."""

    rows: int = 16
    """Most answers that decode together; the others wait."""
    waiting: int = 256
    """Most answers that wait; more are refused."""
    max_tokens: int = 512
    """Longest answer where a request says nothing."""
    prompt_tokens: int | None = None
    """Longest prompt; None for the model's context."""
    answer_tokens: int | None = None
    """Longest answer that a request may ask for; None for what the context leaves."""


USUAL = Limits()
