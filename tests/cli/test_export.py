"""`pasto export`: files, the figures it prints, what it refuses."""

import json

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
    assert sorted(path.name for path in folder.iterdir()) == ["lora+1", "lora-1"]
    assert said.out.count("logits within") == 2
    dial = dials.open_dial(str(project.run), progress.Silent(), packing=False)
    ids = torch.tensor([dial.lm.chat.prompt("Hello")])
    expected = {}
    with torch.no_grad():
        for a in (1.0, -1.0):
            with dial.steerer.at(a):
                expected[a] = dial.lm.model(input_ids=ids).logits
        model = peft.PeftModel.from_pretrained(dial.lm.model, folder / "lora+1", adapter_name="up")
        model.load_adapter(folder / "lora-1", adapter_name="down")
        for name, a in (("up", 1.0), ("down", -1.0)):
            model.set_adapter(name)
            torch.testing.assert_close(model(input_ids=ids).logits, expected[a], rtol=0, atol=1e-4)
    facts = json.loads((folder / "lora-1" / "pasto_export.json").read_text())
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
    assert [path.name for path in (project.root / "out").iterdir()] == ["gguf-lora+1.gguf"]
    assert (
        gguf.GGUFReader(project.root / record["path"]).fields["adapter.type"].contents() == "lora"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--coeff", "0"), "nothing to export"),
        (("--format", "onnx"), "'onnx' is not known"),
        (("--coeff", "nan"), "not finite"),
        (("--out", "tiny.yaml"), "cannot write"),
    ],
)
def test_what_cannot_be_exported_is_a_clear_line(pasto, project, options, error):
    said = pasto("export", *options)
    assert said.code == 1 and error in said.error and said.next_step
    assert not list(project.root.rglob("*.part"))
