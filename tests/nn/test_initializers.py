"""NumPy's numbers are distributed as JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from caphuman_jax.nn import initializers

SHAPE = (3, 3, 20, 64)


@pytest.mark.parametrize(
    "ours, theirs, cumulative",
    [
        (
            initializers.lecun_normal,
            jax.nn.initializers.lecun_normal(),
            stats.truncnorm(-2, 2, scale=180**-0.5 / stats.truncnorm(-2, 2).std()).cdf,
        ),
        (initializers.normal(0.02), jax.nn.initializers.normal(0.02), stats.norm(scale=0.02).cdf),
    ],
)
def test_distribution(ours, theirs, cumulative):
    drawn = ours(np.random.default_rng(0), SHAPE)
    assert drawn.shape == SHAPE and drawn.dtype == jnp.float32
    key = jax.random.key(0)
    np.testing.assert_array_equal(ours(key, SHAPE), theirs(key, SHAPE))
    for values in (drawn, ours(key, SHAPE)):
        assert stats.kstest(np.asarray(values).ravel(), cumulative).pvalue > 0.01


def test_variance_is_one_over_inputs():
    assert np.var(initializers.lecun_normal(np.random.default_rng(0), (500, 300))) == pytest.approx(
        1 / 500, rel=0.02
    )
