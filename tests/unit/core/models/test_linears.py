"""A weight is never taken without its scale, whatever form it was published in."""

import pytest
import torch
from torch import nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import dense_weight

ROWS, COLUMNS = 6, 8


def float8(blocks: tuple[int, int] | None, name: str = "weight_scale_inv", exponents: bool = False):
    """(a Linear with float8 weights and their scales, the weights before)."""
    torch.manual_seed(0)
    true = torch.randn(ROWS, COLUMNS) * torch.arange(1, ROWS + 1)[:, None]
    rows, columns = blocks or (ROWS, COLUMNS)
    scale = torch.stack(
        [
            torch.stack([part.abs().max() / 448 for part in band.split(columns, dim=1)])
            for band in true.split(rows)
        ]
    )
    if exponents:
        scale = scale.log2().ceil().exp2()
    wide = scale.repeat_interleave(rows, 0)[:ROWS].repeat_interleave(columns, 1)[:, :COLUMNS]
    layer = nn.Linear(COLUMNS, ROWS, bias=False)
    layer.weight = nn.Parameter((true / wide).to(torch.float8_e4m3fn), requires_grad=False)
    if exponents:
        scale = (scale.log2() + 127).to(torch.uint8)
    layer.block_size = blocks
    setattr(layer, name, nn.Parameter(scale, requires_grad=False))
    return layer, true


@pytest.mark.parametrize("blocks", [None, (2, 4), (4, 4), (4, 3), (1, COLUMNS)])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("exponents", [False, True])
def test_float8_weights_are_multiplied_by_their_scales(blocks, name, exponents):
    layer, true = float8(blocks, name, exponents)
    assert (dense_weight(layer) - true).norm() < 0.05 * true.norm()


def test_one_scale_a_row_and_one_for_all():
    layer, true = float8((1, COLUMNS))
    layer.weight_scale_inv.data = layer.weight_scale_inv.data[:, 0]
    assert (dense_weight(layer) - true).norm() < 0.05 * true.norm()
    layer, true = float8(None)
    layer.weight_scale_inv.data = layer.weight_scale_inv.data.reshape(())
    assert (dense_weight(layer) - true).norm() < 0.05 * true.norm()


def test_weights_without_a_scale_and_scales_that_do_not_fit_are_refused():
    layer, _ = float8(None)
    layer.weight_scale_inv = None
    with pytest.raises(PastoError, match="without a scale"):
        dense_weight(layer)
    layer, _ = float8((4, 4))
    layer.block_size = None  # (2, 2) scales of 6 rows: of 3 rows each, or 4 and 2?
    layer.weight_scale_inv.data = torch.ones(4, 2)
    with pytest.raises(PastoError, match="do not fit"):
        dense_weight(layer)
    packed = nn.Module()
    packed.qweight = torch.zeros(4, 4, dtype=torch.int32)
    with pytest.raises(PastoError, match="packed weights: unknown quantiser"):
        dense_weight(packed)
