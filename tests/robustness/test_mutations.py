"""Five hundred damaged files, each read or refused in one line; ten thousand: make test-mutations.

Whole models are in the ten thousand only."""

import pytest

from tests.robustness.kinds import KINDS
from tests.robustness.mutations import judge, make_example

QUICK = [name for name, kind in KINDS.items() if not kind.slow]
INPUTS = 500 // len(QUICK) + 1


@pytest.mark.parametrize("kind", QUICK)
def test_what_is_damaged_is_read_or_refused(tmp_path, kind):
    example, made = make_example(kind, tmp_path)
    found = [
        judge(kind, number, 1, example, made, tmp_path / "input" / kind) for number in range(INPUTS)
    ]
    assert not [x for x in found if x.outcome.startswith("WRONG")]
    assert {x.outcome for x in found} == {"read", "refused"}
