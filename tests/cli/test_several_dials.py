"""--adapter A:+1 --adapter B:-0.5, interference, calibrate and --strength, through the command
line."""

import json

from tests.support.terminal import strict


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
