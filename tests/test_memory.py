"""How weights lie in memory: converted on the host or on the device, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax import memory

RNG = np.random.default_rng(0)
STORED = {
    "conv_in": {"kernel": RNG.standard_normal((3, 3, 4, 8)).astype(np.float16), "bias": RNG.standard_normal(8).astype(np.float32)},
    "norm": {"scale": RNG.standard_normal(8).astype(np.float16), "bias": RNG.standard_normal(8).astype(np.float16)},
    "query": {"kernel": (RNG.standard_normal((8, 8)) * 1e-6).astype(np.float16)},
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("setting", ["full", "normal", "low"])
@pytest.mark.parametrize("network", ["unet", "image_encoder", "facenet"])
def test_what_the_device_converts_is_what_the_host_would(network, setting, dtype):
    whole = jax.tree.map(lambda x: x.astype(np.float32), STORED)
    expected = memory.put(network, memory.packed(network, whole, jnp.dtype(dtype), setting), setting)
    found = memory.put_stored(network, STORED, jnp.dtype(dtype), setting)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert mine.dtype == theirs.dtype and isinstance(mine, jax.Array) == isinstance(theirs, jax.Array)
        np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))
