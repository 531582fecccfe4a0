"""Does text still read? Figures of greedy answers at one coefficient beside the base's. No torch.

    distinct   different words as a share of all words, mean over answers
    repeated   answers that say a run of eight words again
    ended      share of answers that end before the limit
    alike      share of answers that begin with the commonest first three words

A dial that is turned too far loops (distinct, repeated), does not stop (ended) or says one thing to
every prompt, such as a refusal (alike). None of them needs labels, a judge or a language.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.core.evaluation.sentiment import distinct_share
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec
from pasto_cli.core.records.adapter import TextQuality

RUN = 8
"""Words of a run that counts as a repetition."""
OPENING = 3
"""Words that answers may have in common at their beginning."""
NOISE = 1
"""One answer more that loops, or fewer that ends, is chance: a small model loops now and then at
any coefficient, and of twelve short answers hardly any ends in time."""
TOLERANCE = 1e-9


class Answer(NamedTuple):
    """One greedy answer."""

    text: str
    tokens: int
    """Its length."""


def quality(answers: Sequence[Answer], limit: int) -> TextQuality:
    """Figures of some answers of at most `limit` tokens."""
    n = len(answers)
    openings = Counter(" ".join(a.text.lower().split()[:OPENING]) for a in answers)
    commonest = max(openings.values(), default=0)
    return TextQuality(
        distinct=sum(distinct_share(a.text) for a in answers) / n,
        repeated=sum(repeated_runs(a.text) > 0 for a in answers),
        ended=sum(a.tokens < limit for a in answers) / n,
        alike=commonest / n if commonest > 1 else 0.0,
        n=n,
    )


def repeated_runs(text: str, length: int = RUN) -> int:
    """How many runs of `length` words (case aside) stand in a text that stood there before."""
    words = text.lower().split()
    seen = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return sum(count - 1 for count in seen.values())


def faults(found: TextQuality, base: TextQuality, spec: CalibrationSpec) -> list[str]:
    """What is wrong with text beside the base's, in words; nothing where it reads."""
    problems: list[str] = []
    if found.distinct < spec.distinct * base.distinct - TOLERANCE:
        problems.append(f"distinct words {found.distinct:.2f}, base {base.distinct:.2f}")
    if found.repeated > base.repeated + NOISE:
        problems.append(f"{found.repeated} of {found.n} answers loop, base {base.repeated}")
    if found.ended < spec.ended * base.ended - NOISE / base.n - TOLERANCE:
        problems.append(f"{found.ended:.0%} of the answers end, base {base.ended:.0%}")
    if found.alike > base.alike + spec.alike + TOLERANCE:
        problems.append(f"{found.alike:.0%} of the answers begin alike, base {base.alike:.0%}")
    return problems
