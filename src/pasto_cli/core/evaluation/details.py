"""What the rows of an evaluation show beyond its scores. No torch.

Worked out whenever it is shown, so that an old file gains whatever is new here.
"""

from collections import Counter
from collections.abc import Sequence

from pasto_cli.core.evaluation.control_kinds import control_kinds
from pasto_cli.core.evaluation.values import value_shifts
from pasto_cli.core.records.evaluation import EvalDetails, EvalRun, Evaluated, Flips, Row
from pasto_cli.core.records.scores import key


def with_details(run: EvalRun) -> Evaluated:
    """An evaluation and what its rows show."""
    # Under the published sign a label no longer says whose side a row is on.
    shifts = value_shifts(run.rows, run.pmass_threshold) if run.label_sign == "own" else None
    details = EvalDetails(
        flips_up=flips(run, 1.0),
        flips_down=flips(run, -1.0),
        controls=control_kinds(run),
        shifts=shifts,
        invalid_top_tokens=invalid_top_tokens(run.rows, run.pmass_threshold),
    )
    return Evaluated(run, details)


def flips(run: EvalRun, coefficient: float) -> Flips:
    """Shares of rows whose answer changed sides between 0 and a coefficient, %.

    Rows that are invalid at either are left out. Target rows without a label for the value have no
    side to flip towards.
    """
    towards = away = controls = num_targets = num_controls = 0
    for row in run.rows:
        zero, steered = row.answers["0"], row.answers[key(coefficient)]
        if min(zero.pmass, steered.pmass) < run.pmass_threshold:
            continue
        flipped = zero.y * steered.y < 0
        if row.kind != "target":
            num_controls += 1
            controls += flipped
        elif run.value in row.labels:
            num_targets += 1
            for_the_value = steered.y * row.labels[run.value] > 0
            as_told = for_the_value == (coefficient > 0)
            towards += flipped and as_told
            away += flipped and not as_told
    return Flips(
        towards=100 * towards / max(num_targets, 1),
        away=100 * away / max(num_targets, 1),
        controls=100 * controls / max(num_controls, 1),
    )


def invalid_top_tokens(
    rows: Sequence[Row], threshold: float, count: int = 5
) -> list[tuple[str, int]]:
    """What invalid answers began with instead, commonest first.

    Args:
        rows: Answer rows.
        threshold: Answers with less probability mass on the answers are invalid.
        count: Tokens at most.

    Returns:
        Token and number of times, over all coefficients.
    """
    found = Counter(
        answer.top_token
        for row in rows
        for answer in row.answers.values()
        if answer.pmass < threshold
    )
    return found.most_common(count)
