"""The grammar in which a recipe names a loss subspace.

    expression = term { "&" term }
    term       = [ "~" ] name          name: taskdiff | suppressed | write | logits_read | random

`taskdiff & suppressed & write` is the original's default; `taskdiff & write & ~logits_read` takes
the readable directions out. `&` is the (left-associative) intersection of two bases, `~` the
orthogonal complement. Parsing needs no torch; `core.training.subspaces` turns a parsed expression
into a basis.
"""

import difflib
import re
from typing import NamedTuple

SUBSPACE_NAMES = ("taskdiff", "suppressed", "write", "logits_read", "random")


class Term(NamedTuple):
    """One name of a subspace expression and whether its complement is meant."""

    name: str
    complement: bool


def parse_subspace(text: str) -> tuple[Term, ...]:
    """Parse a subspace expression.

    Args:
        text: For instance `taskdiff & suppressed & ~logits_read`.

    Returns:
        The terms from left to right; the first one is never a complement.

    Raises:
        ValueError: With one line that says what is wrong and what to write.
    """
    terms: list[Term] = []
    for part in text.split("&"):
        match = re.fullmatch(r"\s*(~?)\s*([A-Za-z_]+)\s*", part)
        if match is None:
            raise ValueError(
                f"{part.strip()!r} is not a subspace name; write names joined by '&', such as "
                f"'taskdiff & write'"
            )
        complement, name = bool(match[1]), match[2]
        if name not in SUBSPACE_NAMES:
            near = difflib.get_close_matches(name, SUBSPACE_NAMES, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SUBSPACE_NAMES)}"
            )
            raise ValueError(f"unknown subspace {name!r}; {hint}")
        terms.append(Term(name, complement))
    if terms[0].complement:
        raise ValueError("the first subspace cannot be a complement; write a plain name first")
    return tuple(terms)
