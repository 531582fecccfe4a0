"""What a server's first tokens prove about the dial behind them."""

from types import SimpleNamespace

import pytest
import torch

from pasto_cli.core.serving.targets import Target
from pasto_cli.workflows.verify_endpoint import First, Served, _judged, _Row

OWN_SHIFT = 0.02
"""By how much the dial moves log-probabilities, nats: too little to move a token."""


@pytest.fixture()
def judged(tiny):
    """The verdict on a dial that moves no token, by how far the server's log-probabilities are."""
    dial = SimpleNamespace(lm=tiny())

    def judge(difference):
        base = torch.full((100,), -9.0)
        base[40] = -0.2
        own = base.clone()
        own[40] -= OWN_SHIFT
        text = dial.lm.tokenizer.decode([40])
        there = [First(text, -0.2), First(text, float(own[40]) + difference)]
        rows = [_Row(torch.stack([base, own]), there)] * 3
        return _judged(dial, Target("one", 1.0, {}), 1, rows)

    return judge


def test_the_same_log_probabilities_are_the_same_dial(judged):
    found = judged(0.001)
    assert found.verdict == "right" and found.moved == 0 and found.equal == found.n == 3


@pytest.mark.parametrize("difference", [0.1, -0.1])
def test_another_dial_that_moves_no_token_either_is_found_out(judged, difference):
    found = judged(difference)
    assert found.verdict == "wrong" and found.equal == 3
    complaint = Served("http://x", found._replace(verdict="right"), [found]).complaint()
    assert "more than the dial moves them" in str(complaint)
