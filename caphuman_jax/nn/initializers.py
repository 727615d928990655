"""Random starting values. A key is JAX's, or a `numpy.random.Generator`: that one draws on the
host, where nothing is compiled; or None, where
shapes alone are wanted: then all are 0, which is less to trace.

A network has hundreds of arrays. One compiled program for all of them takes half a minute, most of
it the compiler's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

# Standard deviation of the standard normal distribution cut off at ±2, whose variance is 1 − 4 φ(2)
# / (2 Φ(2) − 1).
_CUT_DEVIATION = 0.87962566103423978


def lecun_normal(
    key: jax.Array | np.random.Generator | None, shape: tuple[int, ...], dtype=jnp.float32
) -> jax.Array:
    """Kernel (..., inputs, outputs) of variance 1 / (product of all axes but the last), cut off at
    two standard deviations.

    The distribution of `jax.nn.initializers.lecun_normal`, and its very numbers if `key` is JAX's.
    """
    if key is None:
        return jnp.zeros(shape, dtype)
    if not isinstance(key, np.random.Generator):
        return jax.nn.initializers.lecun_normal()(key, shape, dtype)
    drawn = key.standard_normal(shape, np.float32)
    while (outside := np.abs(drawn) > 2).any():
        drawn[outside] = key.standard_normal(np.count_nonzero(outside), np.float32)
    drawn *= np.float32(1 / (_CUT_DEVIATION * math.sqrt(math.prod(shape[:-1]))))
    return jnp.asarray(drawn, dtype)


def normal(deviation: float):
    """An initializer (key, shape, dtype) that draws from the normal distribution of this standard
    deviation around 0.
    """

    def draw(
        key: jax.Array | np.random.Generator | None, shape: tuple[int, ...], dtype=jnp.float32
    ) -> jax.Array:
        if key is None:
            return jnp.zeros(shape, dtype)
        if not isinstance(key, np.random.Generator):
            return jax.nn.initializers.normal(deviation)(key, shape, dtype)
        return jnp.asarray(key.standard_normal(shape, np.float32) * np.float32(deviation), dtype)

    return draw


class HostRngs:
    """Stands in for `nnx.Rngs`: our initializers take a NumPy generator for a key, the others use
    none.
    """

    def __init__(self, key: jax.Array):
        self.generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def params(self) -> np.random.Generator:
        return self.generator


class AbstractRngs:
    """Stands in for `nnx.Rngs` where shapes alone are wanted."""

    def params(self) -> None:
        return None
