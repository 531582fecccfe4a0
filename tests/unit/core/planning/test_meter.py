"""Counting bytes and operations of code that runs without storage."""

import torch

from pasto_cli.core.planning.meter import Meter, fused_attention


def meta(*shape):
    return torch.empty(*shape, device="meta")


def test_bytes_are_those_of_what_is_alive():
    with Meter() as meter:
        a = meta(1000)  # 4000 bytes
        b = a + 1  # and as many
        assert meter.now == meter.peak == 8000
        view = b.view(10, 100)  # a view holds nothing of its own, and keeps what it looks at
        del a, b
        assert (meter.now, meter.peak) == (4000, 8000)
        meter.restart()
        del view
        assert (meter.now, meter.peak) == (0, 4000)


def test_autograd_keeps_what_a_backward_pass_needs():
    """x -> exp -> sum: exp keeps its result, (64,) float32; the backward pass makes a gradient."""
    x = meta(64).requires_grad_()
    with Meter() as meter:
        total = x.exp().sum()
        assert meter.now == 64 * 4 + 4
        total.backward()
        assert x.grad.shape == (64,)
        del total
        assert meter.now == 64 * 4  # the gradient alone


def test_operations_are_those_of_matrix_products():
    with Meter() as meter:
        meta(3, 5) @ meta(5, 7)
        assert meter.operations == {torch.float32: 2 * 3 * 5 * 7}
        meter.restart()
        torch.nn.functional.linear(meta(2, 3, 5), meta(7, 5), meta(7))
        assert meter.operations == {torch.float32: 2 * 6 * 5 * 7}
        half = meta(4, 8).bfloat16()
        half @ half.T
        assert meter.operations[torch.bfloat16] == 2 * 4 * 8 * 4


def test_traffic_is_what_is_read_and_written_without_products_views_and_casts():
    with Meter() as meter:
        x, y = meta(64), meta(64)
        meter.restart()
        x + y
        assert meter.moved == 3 * 64 * 4
        for unchanged in (x.view(8, 8), x[:3], x.bfloat16()):
            assert unchanged.is_meta
        meta(3, 5) @ meta(5, 7)
        assert meter.moved == 3 * 64 * 4


def test_reading_a_number_gives_one():
    with Meter():
        assert meta(()).item() == 1.0


def test_attention_keeps_no_scores():
    """Eight heads over 512 positions would be 8 MiB of scores for each batch row."""
    query, key, value = (meta(2, 8, 512, 16).requires_grad_() for _ in range(3))
    mask = torch.ones(1, 1, 512, 512, dtype=torch.bool, device="meta")
    with Meter() as meter, fused_attention():
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        assert out.shape == query.shape
        # The mask as floats, the result, and the sum of exponentials per query.
        assert meter.now <= 512 * 512 * 4 + 2 * out.numel() * 4
        out.sum().backward()
    assert query.grad.shape == query.shape
