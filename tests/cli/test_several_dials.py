"""--adapter A:+1 --adapter B:-0.5, interference, calibrate and --strength, through the command
line."""

import json
import shutil

import pytest
import torch

from pasto_cli.core.evaluation.disturbance import measure_disturbance
from pasto_cli.workflows import dials, progress
from pasto_cli.workflows.evaluate import neutral_probe
from tests.support.terminal import strict


@pytest.fixture()
def other(project):
    """A second dial on the same base: the first with its coefficients the other way round and
    weaker."""
    from safetensors.torch import load_file, save_file

    folder = project.root / "runs" / "other"
    shutil.copytree(project.run, folder)
    path = folder / "adapter" / "adapter.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("theta", "delta")):
            tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path)
    return folder


def test_each_dial_has_its_own_coefficient(pasto, project, other):
    names = ("--adapter", f"{project.run}:+40", "--adapter", f"{other}:-20", "--no-verify")
    said = pasto(
        "generate",
        *names,
        "--coeff",
        "1",
        "--coeff",
        "0",
        "--max-new-tokens",
        "6",
        "--json",
        "Hello",
    )
    assert said.code == 0, said.err
    texts = {record["coeff"]: record["text"] for record in strict(said.out)}
    alone = strict(
        pasto(
            "generate",
            "-a",
            f"{project.run}",
            "-c",
            "0",
            "--max-new-tokens",
            "6",
            "--json",
            "Hello",
        ).out
    )
    assert texts[0] == alone[0]["text"] and texts[1] != texts[0]
    exported = pasto("export", *names, "--coeff", "0.01", "--out", "out", "--json")
    assert exported.code == 0, exported.err
    (record,) = strict(exported.out)
    assert record["difference"] < 1e-4
    facts = json.loads((project.root / record["path"] / "pasto_export.json").read_text())
    assert [dial["coefficient"] for dial in facts["dials"]] == [0.4, -0.2]
    config = json.loads((project.root / record["path"] / "adapter_config.json").read_text())
    rank = json.loads((project.run / "adapter" / "pasto.json").read_text())["recipe"]["adapter"][
        "rank"
    ]
    assert config["r"] == 2 * rank


def test_one_dial_with_its_coefficient(pasto, project):
    by_name = pasto(
        "generate", "-a", f"{project.run}:-2", "--max-new-tokens", "4", "--json", "Hello"
    )
    plain = pasto(
        "generate", "-a", project.run, "--coeff", "-2", "--max-new-tokens", "4", "--json", "Hello"
    )
    assert by_name.code == 0 and by_name.out == plain.out
    both = pasto("generate", "-a", f"{project.run}:-2", "--coeff", "1", "Hello")
    assert both.code == 1 and "its coefficient already" in both.error


def test_a_dial_of_another_base_is_refused(pasto, project, other):
    meta = json.loads((other / "adapter" / "pasto.json").read_text())
    path = next(iter(meta["base"]["fingerprints"]))
    meta["base"]["fingerprints"][path], meta["tensors_sha256"] = "0" * 64, None
    (other / "adapter" / "pasto.json").write_text(json.dumps(meta))
    said = pasto("generate", "-a", project.run, "-a", other, "Hello")
    assert said.code == 1 and "wrong base" in said.error


def test_interference_is_measured_on_each_dials_own_pairs(pasto, project, other):
    said = pasto("interference", f"{project.run}:1", f"{other}:-1", "--no-verify", "--json")
    assert said.code == 0, said.err
    one, two = strict(said.out)
    assert (one["name"], two["name"]) == (project.run.name, "other")
    assert (one["coefficient"], two["coefficient"]) == (1, -1)
    certificate = json.loads((project.run / "adapter" / "pasto.json").read_text())["certificate"]
    for key in ("value", "low", "high", "n"):
        assert one["alone"][key] == pytest.approx(certificate["strength"]["1"][key], abs=1e-4)
    shown = pasto("interference", f"{project.run}:1", f"{other}:-1", "--no-verify")
    assert "the others alone" in shown.out and f"{one['alone']['value']:+.2f}" in shown.out
    assert pasto("interference", project.run).code == 1


def test_interference_of_small_turns_is_none(pasto, project, other):
    """Strengths add up to first order; what is left is of second order, so it is a share of the sum
    that is itself of the size of the coefficients."""
    small = 0.01
    ends = (f"{project.run}:{small}", f"{other}:-{small}")
    said = pasto("interference", *ends, "--no-verify", "--json")
    assert said.code == 0, said.err
    for dial in strict(said.out):
        alone, others, together = (dial[way]["value"] for way in ("alone", "others", "together"))
        assert abs(alone) > 0.001 and abs(others) > 0.001
        assert together == pytest.approx(alone + others, rel=small)


def test_a_calibrated_dial_turns_by_per_cent(pasto, project):
    before = pasto("generate", "--strength", "50", "Hello")
    assert (
        before.code == 1
        and "not calibrated" in before.error
        and "pasto calibrate" in before.next_step
    )
    said = pasto("calibrate", "--kl", "0.05", "--json")
    assert said.code == 0, said.err
    found = strict(said.out)
    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    assert (
        dial.meta.calibration is not None
        and dial.meta.calibration.coefficients == found["coefficients"]
    )
    for key, sign in (("1", 1), ("-1", -1)):
        a = found["coefficients"][key]
        assert a * sign > 0
        reading = measure_disturbance(dial.lm, dial.steerer, neutral_probe(dial), a)
        assert reading.kl_p95 == pytest.approx(0.05, rel=0.05) == found["reached"][key]["value"]
        assert dial.meta.coefficient(sign * 50) == pytest.approx(a / 2)
    half = strict(
        pasto("generate", "--strength", "-50", "--max-new-tokens", "3", "--json", "Hello").out
    )
    assert half[0]["coeff"] == pytest.approx(found["coefficients"]["-1"] / 2)
    assert "strength +100 %" in (project.run / "adapter" / "README.md").read_text()
    assert pasto("verify").code == 0  # the artifact is still whole
    for wrong in (("--strength", "50", "--coeff", "1"), ("--strength", "101")):
        assert pasto("generate", *wrong, "Hello").code in (1, 2)
    assert pasto("calibrate", "--kl", "0").code == 1


def test_the_python_dial_knows_its_strength(project, pasto):
    import pasto_cli

    assert pasto("calibrate", "--kl", "0.05").code == 0
    model, tokenizer, dial = pasto_cli.load(project.run)
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        base = model(input_ids=ids).logits
        with dial.at(dial.strength(0)):
            assert torch.equal(model(input_ids=ids).logits, base)
        with dial.at(dial.strength(100)):
            assert not torch.equal(model(input_ids=ids).logits, base)
