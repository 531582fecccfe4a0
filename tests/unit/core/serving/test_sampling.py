"""The nucleus against transformers' own; the law of what stays."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from pasto_cli.core.serving.sampling import nucleus


@given(st.integers(0, 1000), st.floats(0.01, 0.999))
def test_nucleus_equals_transformers(seed, top_p):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    theirs = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0]
    assert torch.equal(nucleus(logits, top_p), theirs)


@given(st.integers(0, 1000), st.floats(0.0, 0.999))
def test_the_nucleus_is_the_fewest_tokens_that_have_the_mass(seed, top_p):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    p = logits.softmax(-1)
    inside = nucleus(logits, top_p) > float("-inf")
    assert inside[logits.argmax()] and p[inside].min() >= p[~inside].max()
    assert p[inside].sum() >= top_p - 1e-12
    assert p[inside].sum() - p[inside].min() < top_p + 1e-12 or inside.sum() == 1
