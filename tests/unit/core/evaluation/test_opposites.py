"""What both answers to a question share, against plain forwards."""

import pytest
import torch

from pasto_cli.core.evaluation.opposites import measure_opposites
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.steering.steerer import AdapterSteerer, Scaled

ASKED = [
    Anchor(
        f"I have {n} coins. Should I keep them?", "own", opening, f"I have {n} coins. Give them?"
    )
    for n, opening in enumerate(["", "So:", "Verdict:"])
]


def odds(lm, prompt, opening, tokens):
    row = torch.tensor([lm.chat.continued(prompt, opening)])
    with torch.no_grad():
        logits = lm.model(input_ids=row).logits[0, -1].double()
    return (logits[tokens[0]] - logits[tokens[1]]).item()


def test_it_is_half_the_sum_of_both_changes_by_plain_forwards(tiny, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    sizes = {"1": [], "-1": []}
    for asked in ASKED:
        sides = (asked.prompt, asked.opposite)
        with torch.no_grad():
            rows = [torch.tensor([lm.chat.continued(p, asked.opening)]) for p in sides]
            both = torch.stack([lm.model(input_ids=r).logits[0, -1].softmax(-1) for r in rows])
        tokens = both.double().mean(0).topk(2).indices.tolist()
        before = sum(odds(lm, p, asked.opening, tokens) for p in sides)
        for name, end in (("1", 1.0), ("-1", -1.0)):
            with adapter.at(lm.model, end):
                now = sum(odds(lm, p, asked.opening, tokens) for p in sides)
            sizes[name].append(abs(now - before) / 2)
    steerer = AdapterSteerer(adapter, lm)
    found = measure_opposites(lm, steerer, ASKED, budget=512, seed=0)
    for name, each in sizes.items():
        assert max(each) > 1e-2  # there was something to compare
        assert found[name].value == pytest.approx(sum(each) / 3, rel=1e-3)
        assert min(each) - 1e-4 <= found[name].low <= found[name].high <= max(each) + 1e-4
        assert found[name].n == 3
    # However the rows are grouped.
    alone = measure_opposites(lm, steerer, ASKED, budget=1, seed=0)
    assert alone["1"].value == pytest.approx(found["1"].value, rel=1e-4)


def test_a_dial_at_rest_moves_nothing(tiny, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    still = Scaled(AdapterSteerer(adapter, lm), 0.0, 0.0)
    found = measure_opposites(lm, still, ASKED, budget=512, seed=0)
    assert found["1"].value == found["-1"].value == 0
