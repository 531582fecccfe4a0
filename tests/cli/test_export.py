"""`pasto export`: files, the figures it prints, what it refuses."""

import json
import re

import gguf
import peft
import pytest
import torch

from pasto_cli.workflows import dials, progress
from tests.support.terminal import strict


def test_a_folder_for_each_coefficient_that_stock_peft_loads(pasto, project):
    said = pasto("export", "--coeff", "1", "--coeff", "-1", "--format", "lora")
    assert said.code == 0, said.err
    folder = project.run / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["lora-minus1.00", "lora-plus1.00"]
    assert said.out.count("logits within") == 2
    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    ids = torch.tensor([dial.lm.chat.prompt("Hello")])
    expected = {}
    with torch.no_grad():
        for a in (1.0, -1.0):
            with dial.steerer.at(a):
                expected[a] = dial.lm.model(input_ids=ids).logits
        model = peft.PeftModel.from_pretrained(
            dial.lm.model, folder / "lora-plus1.00", adapter_name="up"
        )
        model.load_adapter(folder / "lora-minus1.00", adapter_name="down")
        for name, a in (("up", 1.0), ("down", -1.0)):
            model.set_adapter(name)
            torch.testing.assert_close(model(input_ids=ids).logits, expected[a], rtol=0, atol=1e-4)
    facts = json.loads((folder / "lora-minus1.00" / "pasto_export.json").read_text())
    assert facts["coefficient"] == -1 and facts["base"]["source"] == "random:llama"


def test_nothing_is_replaced_unasked(pasto, project):
    assert pasto("export", "--coeff", "1", "--format", "gguf-lora", "--out", "out").code == 0
    again = pasto("export", "--coeff", "1", "--format", "gguf-lora", "--out", "out")
    assert again.code == 1 and "there already" in again.error and "--force" in again.next_step
    forced = pasto(
        "export", "--coeff", "1", "--format", "gguf-lora", "--out", "out", "--force", "--json"
    )
    (record,) = strict(forced.out)
    assert record["coefficient"] == 1 and record["difference"] < 1e-4
    assert [path.name for path in (project.root / "out").iterdir()] == ["gguf-lora-plus1.00.gguf"]
    assert (
        gguf.GGUFReader(project.root / record["path"]).fields["adapter.type"].contents() == "lora"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--coeff", "0"), "nothing to export"),
        (("--format", "onnx"), "'onnx' is not known"),
        (("--coeff", "nan"), "nan is not a coefficient"),
        (("--out", "tiny.yaml"), "tiny.yaml is a file"),
    ],
)
def test_what_cannot_be_exported_is_a_clear_line(pasto, project, options, error):
    said = pasto("export", *options)
    assert said.code == 1 and error in said.error and said.next_step
    assert not list(project.root.rglob("*.part*"))


@pytest.mark.parametrize(
    ("kind", "coefficient", "name"),
    [
        ("lora", 1.0, "lora-plus1.00"),
        ("lora", -0.5, "lora-minus0.50"),
        ("merged", 2.25, "merged-plus2.25"),
        ("lora", 0.125, "lora-plus0.125"),  # not the name of 0.12
        ("lora", -1e-05, "lora-minus1e-05"),
        ("gguf-lora", -1.0, "gguf-lora-minus1.00.gguf"),
    ],
)
def test_names_are_safe_in_urls_and_options(kind, coefficient, name):
    from types import SimpleNamespace

    from pasto_cli.workflows import export

    assert export._name(SimpleNamespace(dials=[None]), kind, coefficient) == name
    mixed = export._name(SimpleNamespace(dials=[None, None]), kind, coefficient)
    assert mixed == name.replace(kind, f"{kind}-mix", 1)
    assert re.fullmatch(r"[a-z0-9.\-]+", mixed)
