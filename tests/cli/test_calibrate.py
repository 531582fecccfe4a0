"""Calibrated ends: what +1 and -1 stand for, at the end of training and by `pasto calibrate`."""

import json
import shutil

import pytest
import torch

from pasto_cli.core.evaluation.disturbance import measure_disturbance
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.evaluate import neutral_probe
from pasto_cli.workflows.kept_results import kept_results
from tests.support.terminal import Finished, call_in, strict

CALIBRATE = ("calibrate", "--kl", "0.05", "--json")


@pytest.fixture(scope="module")
def loose_run(trained, tmp_path_factory):
    """A run whose text reads whatever it says, as text of random weights never does."""
    root = tmp_path_factory.mktemp("loose")
    shutil.copytree(trained.root / "runs", root / "runs", symlinks=True)
    path = root / "runs" / trained.run.name / "adapter" / "pasto.json"
    meta = json.loads(path.read_text())
    meta["recipe"]["calibration"] = {"tokens": 6, "prompts": 3, "distinct": 0.0, "alike": 1.0}
    path.write_text(json.dumps(meta))
    return Finished(root, root / "runs" / trained.run.name, trained.said)


@pytest.fixture(scope="module")
def calibrated_run(loose_run, tmp_path_factory):
    """The same run, calibrated: nothing may change it."""
    root = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(loose_run.root / "runs", root / "runs", symlinks=True)
    said = call_in(root, *CALIBRATE)
    assert said.code == 0, said.err
    return Finished(root, root / "runs" / loose_run.run.name, said)


def copied(finished, folder):
    shutil.copytree(finished.root / "runs", folder / "runs", symlinks=True)
    return Finished(folder, folder / "runs" / finished.run.name, finished.said)


@pytest.fixture()
def loose(loose_run, tmp_path):
    """A copy of the run before its calibration, where `pasto` works."""
    return copied(loose_run, tmp_path)


@pytest.fixture()
def calibrated(calibrated_run, tmp_path):
    """A copy of the calibrated run, where `pasto` works."""
    return copied(calibrated_run, tmp_path)


def test_a_calibrated_dial_turns_between_its_ends(pasto, calibrated):
    found = strict(calibrated.said.out)
    dial = dials.open_dial(str(calibrated.run), progress.Silent(), packing=False)
    assert dial.meta.calibration is not None
    assert dial.meta.calibration.coefficients == found["coefficients"]
    assert len(found["prompts_sha256"]) == 64 and found["text"]["0"]["n"] == 3
    raw = AdapterSteerer(dial.adapter, dial.lm)
    for key, sign in (("1", 1), ("-1", -1)):
        a = found["coefficients"][key]
        assert a * sign > 0 and dial.raw(sign) == a and dial.raw(sign / 2) == a / 2
        for steerer, at in ((raw, a), (dial.steerer, float(sign))):
            reading = measure_disturbance(dial.lm, steerer, neutral_probe(dial.lm), at)
            assert reading.kl_p95 == pytest.approx(0.05, rel=0.05)
            assert reading.kl_p95 == pytest.approx(found["reached"][key]["value"], rel=0.02)
    card = (calibrated.run / "adapter" / "README.md").read_text()
    assert "Calibrated: +1 is coefficient" in card
    # The certificate is of the new ends.
    assert dial.meta.certificate is not None and "1" in dial.meta.certificate.strength
    assert pasto("verify").code == 0  # the artifact is still whole
    assert pasto("calibrate", "--kl", "0").code == 1


def test_what_the_certificate_says_at_the_new_ends_is_said(pasto, calibrated, monkeypatch):
    """And a failed one ends with exit code 1, as after a training."""
    found = strict(calibrated.said.out)
    stored = strict((calibrated.run / "adapter" / "pasto.json").read_text())["certificate"]
    assert found["certificate"] == stored and stored["passed"]
    said = pasto("calibrate", "--kl", "0.05")
    assert said.code == 0 and "Certificate passed: " in said.out
    weak = pasto("calibrate", "--kl", "0.00002")
    assert weak.code == 1 and "the certificate failed at these ends" in weak.error
    assert "Certificate FAILED: " in weak.out and "Calibrated: +1 is coefficient" in weak.out
    said = pasto("verify")
    assert said.code == 0 and said.out.rstrip().endswith("certificate: FAILED")


def test_verbs_speak_in_what_a_user_turns(pasto, calibrated):
    dial = dials.open_dial(str(calibrated.run), progress.Silent(), packing=False)
    a = dial.raw(-1.0)
    ask = ("generate", "--max-new-tokens", "6", "--json", "Hello")
    turned = strict(pasto(*ask, "-c", "-1").out)[0]["text"]
    raw = strict(pasto(*ask, "--raw", "-c", str(a)).out)[0]["text"]
    assert turned == raw
    said = pasto("generate", "--max-new-tokens", "2", "-c", "1.5", "Hello")
    assert said.code == 0 and "beyond the calibrated range" in said.err
    two = ("generate", "--max-new-tokens", "2", "Hello", "-a", str(calibrated.run), "-a")
    said = pasto(*two, f"{calibrated.run}:-2")
    assert said.code == 0 and "beyond the calibrated range" in said.err
    assert "beyond" not in pasto(*two, f"{calibrated.run}:-1").err
    assert "beyond" not in pasto("generate", "--max-new-tokens", "2", "--raw", "-c", "2", "x").err
    assert pasto("export", "--coeff", "-1", "--out", "out").code == 0
    facts = json.loads(
        (calibrated.root / "out" / "lora-minus1.00" / "pasto_export.json").read_text()
    )
    assert facts["dials"][0]["raw_coefficient"] == a and facts["coefficient"] == -1.0


def test_zero_is_the_base_bit_for_bit(calibrated):
    import pasto_cli

    model, tokenizer, dial = pasto_cli.load(calibrated.run)
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        base = model(input_ids=ids).logits
        with dial.at(0.0):
            assert torch.equal(model(input_ids=ids).logits, base)
        with dial.at(1.0):
            assert not torch.equal(model(input_ids=ids).logits, base)
        with dial.at(-1.0, bake=True):
            baked = model(input_ids=ids).logits
        with dial.at(-1.0):
            torch.testing.assert_close(model(input_ids=ids).logits, baked, rtol=0, atol=1e-4)
        # Rows of one batch may stand on both sides.
        with dial.at([-1.0, 0.0]):
            both = model(input_ids=ids.repeat(2, 1)).logits
    torch.testing.assert_close(both[:1], baked, rtol=0, atol=1e-4)


def test_an_adapter_without_ends_stands_where_training_left_it(project):
    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    assert dial.meta.calibration is None and dial.ends == (1.0, 1.0)
    assert dial.raw(0.37) == 0.37 and dial.raw(-2.0) == -2.0


def test_text_that_never_reads_is_said_and_the_end_stands_at_the_budget(pasto, loose, monkeypatch):
    from pasto_cli.core.evaluation import calibration as library

    monkeypatch.setattr(library, "faults", lambda *_: ["3 of 3 answers loop, base 0"])
    said = pasto(*CALIBRATE)
    assert said.code == 0 and said.err.count("however little the dial is turned") == 2
    found = strict(said.out)
    assert all(x["value"] == pytest.approx(0.05, rel=0.05) for x in found["reached"].values())


def test_an_end_is_lowered_until_text_reads(pasto, loose, calibrated_run, monkeypatch):
    from pasto_cli.core.evaluation import calibration as library

    whole = strict(calibrated_run.said.out)["coefficients"]
    verdicts = iter([["loops"], [], ["loops"], []])  # +1 and -1, then +1 twice
    monkeypatch.setattr(library, "faults", lambda *_: next(verdicts))
    said = pasto(*CALIBRATE)
    assert said.code == 0 and "+1 stands below the budget" in said.err
    found = strict(said.out)["coefficients"]
    assert found["1"] == pytest.approx(whole["1"] * 0.8**2) and found["-1"] == whole["-1"]


def test_training_finds_the_ends_itself(pasto, project):
    from tests.support.runs import TRAIN

    loose = "tokens: 4, prompts: 2, distinct: 0, alike: 1, ended: 0"
    said = pasto(*TRAIN, "--json", "--set", f"calibration={{{loose}, kl: 0.02}}")
    assert said.code in (0, 1), said.err
    found = strict(said.out)
    assert found["calibration"]["coefficients"]["1"] > 0
    stored = json.loads((project.root / "runs" / "latest" / "adapter" / "pasto.json").read_text())
    assert stored["calibration"] == found["calibration"]
    # Nothing reaches this budget: the dial is whole all the same, at the coefficients of training.
    out_of_reach = pasto(*TRAIN, "--json", "--set", f"calibration={{{loose}, kl: 49}}")
    assert out_of_reach.code == said.code
    (line,) = [x for x in out_of_reach.err.splitlines() if x.startswith("warning: no coefficient")]
    assert "49 nats" in line and "pasto calibrate" in line
    assert strict(out_of_reach.out)["calibration"] is None
    wrong = pasto("calibrate", "--kl", 49)
    assert wrong.code == 1 and "49 nats" in wrong.error and "--kl" in wrong.next_step


def test_what_was_measured_between_other_ends_is_left_out(pasto, loose):
    """Report, card and server speak of the dial as it stands; the files stay."""
    asked = ("eval", "-b", "mini-dilemmas", "--limit", 3)
    assert pasto(*asked).code == 0
    assert pasto("report", "--samples", 1).code == 0
    page, texts = (loose.run / name for name in ("report.html", "samples.json"))
    before = texts.read_bytes()
    assert "n = 6 rows of 3 dilemmas" in page.read_text()
    said = pasto(*CALIBRATE)
    assert said.code == 0 and "left out: mini-dilemmas.json. Measure again: pasto eval " in said.err
    again = said.err.split("Measure again: pasto ")[1].splitlines()[0].split()
    assert again == ["eval", str(loose.run), "-b", "mini-dilemmas"]
    assert "n = 6 rows" not in (loose.run / "adapter" / "README.md").read_text()
    said = pasto("report", "--samples", 1)
    assert said.code == 0 and "left out: mini-dilemmas.json" in said.err
    assert "n = 6 rows of 3 dilemmas" not in page.read_text()
    assert "Calibrated: +1 is coefficient" in page.read_text()
    assert texts.read_bytes() != before  # those were the old dial's
    said = pasto("push", "user/dial", "--dry-run")
    assert said.code == 0 and "left out: mini-dilemmas.json" in said.err
    assert pasto(*asked).code == 0
    said = pasto("report", "--samples", 1)
    assert said.code == 0 and "left out" not in said.err
    assert "n = 6 rows of 3 dilemmas" in page.read_text()


def test_neither_a_part_nor_raw_coefficients_replace_what_is_known(pasto, calibrated):
    kept = calibrated.run / "eval"
    asked = ("eval", "-b", "mini-dilemmas", "--limit")
    assert pasto(*asked, 4).code == 0
    whole = (kept / "mini-dilemmas.json").read_bytes()
    said = pasto(*asked, 2)
    assert said.code == 0 and "mini-dilemmas-part.json" in said.out
    said = pasto(*asked, 5, "--raw")
    assert said.code == 0 and "mini-dilemmas-raw.json" in said.out
    assert (kept / "mini-dilemmas.json").read_bytes() == whole
    found = kept_results(calibrated.run, dials.open_dial(None, progress.Silent()).meta.ends)
    assert [run.scores.n_target for run in found.evaluations] == [8]
    assert not found.outdated  # --raw was asked for: nothing to be measured again
    assert pasto(*asked, 5).code == 0  # more than was known
    assert (kept / "mini-dilemmas.json").read_bytes() != whole
