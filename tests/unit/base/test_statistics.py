"""Quantiles beside NumPy's; intervals are tested where they are used."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.statistics import quantile

NUMBERS = st.lists(
    st.floats(allow_infinity=False, width=64, min_value=-1e12, max_value=1e12) | st.just(np.nan),
    min_size=1,
    max_size=40,
)


@given(NUMBERS, st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]) | st.floats(0.0, 1.0))
def test_a_quantile_is_numpys_bit_for_bit(numbers, q):
    x = np.array(numbers, dtype=np.float64)
    found, expected = quantile(x, q), float(np.quantile(x, q))
    assert found == expected or (np.isnan(found) and np.isnan(expected))
