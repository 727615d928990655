import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caphuman_jax.nn.blocks import FeedForward, ResBlock, TransformerBlock
from caphuman_jax.nn.compute_config import ComputeConfig


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_zeroed_res_block_is_its_input():
    block = ResBlock(
        8,
        8,
        groups=4,
        eps=1e-5,
        time_width=16,
        zero=True,
        compute=ComputeConfig(),
        rngs=nnx.Rngs(0),
    )
    x = normal((2, 4, 4, 8))
    np.testing.assert_array_equal(block(x, block.time_bias(normal((2, 16)))), x)


def test_res_block_sees_the_time():
    block = ResBlock(
        8, 12, groups=4, eps=1e-5, time_width=16, compute=ComputeConfig(), rngs=nnx.Rngs(0)
    )
    x, time = normal((1, 4, 4, 8)), normal((1, 16))
    one, two = (block(x, block.time_bias(t)) for t in (time, 2 * time))
    assert one.shape == (1, 4, 4, 12)
    assert float(jnp.abs(one - two).max()) > 1e-2


def test_transformer_block_starts_as_identity():
    block = TransformerBlock(16, 8, 2, groups=4, compute=ComputeConfig(), rngs=nnx.Rngs(0))
    x = normal((2, 4, 4, 16))
    np.testing.assert_array_equal(block(x, normal((2, 5, 8))), x)


def test_feed_forward_gates_with_exact_gelu():
    layer = FeedForward(4, compute=ComputeConfig(), rngs=nnx.Rngs(0))
    x = 3 * normal((1, 6, 4))
    value, gate = np.split(np.asarray(layer.up(x), np.float64), 2, axis=-1)
    erf = np.asarray(jax.scipy.special.erf(jnp.asarray(gate / np.sqrt(2), jnp.float32)))
    expected = layer.down(jnp.asarray(value * gate * 0.5 * (1 + erf), jnp.float32))
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_bfloat16_compute_keeps_float32_weights():
    block = TransformerBlock(
        16, 8, 2, groups=4, compute=ComputeConfig(jnp.bfloat16), rngs=nnx.Rngs(0)
    )
    out = block(normal((1, 4, 4, 16)).astype(jnp.bfloat16), normal((1, 5, 8)).astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(block)))} == {
        jnp.dtype("float32")
    }
