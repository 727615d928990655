"""Whether arrays are finite, against NumPy's own test."""

import ml_dtypes
import numpy as np
import pytest

from caphuman_jax.io.finite import all_finite

TYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("bad", [None, np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (3, 700_000)])
def test_a_single_number_is_found(dtype, bad, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if bad is not None:
        array[tuple(n - 1 for n in shape)] = bad
    assert all_finite(array) is (bad is None)
    assert all_finite(array.T) is (bad is None)
    assert all_finite(array.astype(np.float64)) is (bad is None)


def test_large_numbers_whose_squares_overflow_and_other_types():
    assert all_finite(np.full(10, 3e38, np.float32))
    assert all_finite(np.arange(5)) and all_finite(np.empty((0, 3), np.float16))
    assert all_finite(np.empty((0, 3), np.float32))
