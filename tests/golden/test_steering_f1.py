"""Steering F1 against the original's outputs, part by part."""

import json
import math

import numpy as np
import pytest

from pasto_cli.core.evaluation.metrics import Ends, steering_f1

PARTS = {
    "steering_f1": "f1",
    "net_correct": "net",
    "correct_w": "correct",
    "wrong_w": "wrong",
    "arb_w": "arbitrary",
    "correct_rate": "correct_rate",
    "wrong_rate": "wrong_rate",
    "arb_rate": "arbitrary_rate",
    "precision": "precision",
    "recall": "recall",
    "pmass_ratio": "pmass_ratio",
    "steering_f1_raw": "raw",
}


def test_all_cases(golden):
    data = json.loads((golden / "steering_f1.json").read_text())
    assert len(data["cases"]) >= 10
    for number, case in enumerate(data["cases"]):
        i = case["inputs"]
        target, control = (
            Ends(*(np.array(i[f"y_{c}_{kind}"], dtype=float) for c in ("neg", "0", "pos")))
            for kind in "ta"
        )
        got = steering_f1(
            target,
            control,
            Ends(i["pmass_neg"], i["pmass_ref"], i["pmass_pos"]),
            variant="original",
            pmass_threshold=data["pmass_threshold"],
        )
        for theirs, ours in PARTS.items():
            want = case["expected"].get(theirs)
            if want is None:
                assert theirs not in ("steering_f1",) or math.isnan(got.f1), (number, theirs, got)
            else:
                assert getattr(got, ours) == pytest.approx(want, abs=1e-4, rel=1e-5), (
                    number,
                    theirs,
                    got,
                )
