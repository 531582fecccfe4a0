"""The method against the outputs of the original code (any folder of the format; see
CONTRIBUTING)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pasto_cli.core.recipe.losses_spec import CoherenceSpec, MonotonicitySpec, ProjectionSpec
from pasto_cli.core.steering.cayley import CayleyAdapter, Rotation
from pasto_cli.core.steering.factors import Factors
from pasto_cli.core.training import subspaces as sub
from pasto_cli.core.training.losses import (
    coherence_penalty,
    entropy,
    monotonicity_loss,
    projection_loss,
    total_variation,
)

CASES = (0, 1, 2)


@pytest.fixture(scope="module")
def numbers(golden):
    return load_file(golden / "tensors.safetensors"), json.loads(
        (golden / "parameters.json").read_text()
    )


def part(numbers, name):
    tensors, parameters = numbers
    return {
        k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(name + ".")
    }, parameters[name]


def masked_tail_mean(hidden, mask, last):
    hidden, weight = hidden[:, -last:], mask[:, -last:, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


@pytest.mark.parametrize("case", CASES)
def test_projection(numbers, case):
    t, p = part(numbers, f"proj{case}")
    d = {
        side: masked_tail_mean(t[f"{side}_cho"], t["mask"], p["last_n_tokens"])
        - masked_tail_mean(t[f"{side}_rej"], t["mask"], p["last_n_tokens"])
        for side in ("ref", "pos", "neg")
    }
    spec = ProjectionSpec(
        kind="scaled",
        scale=p["scale"],
        margin=p["margin"],
        softness=p["focus_softness"],
        orth_weight=p["orth_weight"],
    )
    result = projection_loss(
        d_ref=d["ref"], d_pos=d["pos"], d_neg=d["neg"], basis=t["basis"], spec=spec
    )
    torch.testing.assert_close(result.loss, t["expected_loss"], rtol=1e-4, atol=1e-4)
    assert result.cos_pos.mean().item() == pytest.approx(p["cos_pos_ref_mean"], abs=1e-4)
    assert result.cos_neg.mean().item() == pytest.approx(p["cos_neg_ref_mean"], abs=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("aggregate", ["mean", "lse", "max"])
def test_coherence(numbers, case, aggregate):
    t, p = part(numbers, f"coh{case}")
    spec = CoherenceSpec(
        weight=p["scale"],
        kappa=p["threshold_frac"],
        beta=p["threshold_floor"],
        temperature=p["lse_temperature"],
        barrier=p["barrier"],
        aggregate=aggregate,
    )
    log_p, log_p0 = t["steered_logits"].log_softmax(-1), t["ref_logits"].log_softmax(-1)
    got = coherence_penalty(
        total_variation(log_p, log_p0),
        base_entropy=entropy(log_p0),
        mask=t["mask"].bool(),
        spec=spec,
    )
    torch.testing.assert_close(got, t[f"expected_{aggregate}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_monotonicity(numbers, case):
    t, p = part(numbers, f"mono{case}")
    spec = MonotonicitySpec(
        weight=p["scale"], frac=p["threshold_frac"], floor=p["threshold_floor"], variant="batch"
    )
    forward, mirrored = (
        monotonicity_loss(
            gap_pos=sign * t["delta_pos"],
            gap_neg=sign * t["delta_neg"],
            base_entropy=t["entropy"],
            spec=spec,
        ).mean()
        for sign in (1, -1)
    )
    torch.testing.assert_close(forward, t["expected_fwd"].squeeze(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mirrored, t["expected_rev"].squeeze(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", ["-2", "-1", "0.5", "1"])
def test_adapter_forward(numbers, case, alpha):
    t, p = part(numbers, f"adapter{case}")
    layer = torch.nn.Linear(t["v"].shape[0], t["u"].shape[0], bias=False)
    layer.weight.data = t["weight"]
    rotation = Rotation(Factors(t["u"], t["s"], t["v"]), t["theta"], t["delta_s"])
    adapter = CayleyAdapter({"0": rotation}, "entrywise", p["max_rotation_angle"])
    model = torch.nn.Sequential(layer)
    with torch.no_grad(), adapter.at(model, float(alpha)):
        torch.testing.assert_close(model(t["x"]), t[f"y_alpha_{alpha}"], rtol=1e-4, atol=1e-4)


def projector(basis, k=4):
    return basis[:, :k] @ basis[:, :k].T


def test_subspaces(numbers):
    t, p = part(numbers, "sub")
    hidden, depth = t["hidden_states"], int(p["layer_frac"] * (t["hidden_states"].shape[1] - 1))
    task = sub.taskdiff(hidden, depth, center=True, k=p["top_k"])
    quiet = sub.suppressed(
        hidden, sub.logits_read(t["lm_head"], p["logits_read_rank"]), k=p["top_k"]
    )
    both = sub.intersect(task, quiet, p["intersect_top_k"])
    written = sub.Basis(t["write_basis"], t["write_importance"])
    all_three = sub.intersect(both, written, p["intersect_top_k"])
    final = p["final_top_k"]
    for name, basis in {
        "taskdiff": task,
        "suppressed": quiet,
        "taskdiff_x_suppressed": both,
        "taskdiff_x_suppressed_x_write": all_three,
    }.items():
        expected = t[f"expected_{name}_projector_rank4"]
        torch.testing.assert_close(
            projector(basis.columns, final),
            expected,
            rtol=0,
            atol=1e-4,
            msg=lambda m, n=name: f"{n}: {m}",
        )
