"""How many examples hypothesis draws: what every commit can afford, or ten times as many with
`--hypothesis-profile=nightly`."""

from typing import Any

from hypothesis import settings

USUAL = 100
"""What hypothesis draws unasked."""

settings.register_profile("nightly", max_examples=10 * USUAL)


def examples(count: int, **more: Any) -> settings:
    """Settings for `count` examples; no deadline, since other work shares the cores."""
    times = settings.default.max_examples // USUAL
    return settings(max_examples=count * times, deadline=None, **more)
