"""Weights in the compute dtype give what float32 weights give, to the last bit; 8-bit kernels are
near.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caphuman_jax.nn import quantization
from caphuman_jax.nn.blocks import ResBlock, TransformerBlock
from caphuman_jax.nn.compute_config import ComputeConfig


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, dtype):
        rngs = nnx.Rngs(0)
        self.res = ResBlock(
            8, 8, groups=4, eps=1e-5, time_width=6, compute=ComputeConfig(dtype), rngs=rngs
        )
        self.attention = TransformerBlock(
            8, 6, 2, groups=4, compute=ComputeConfig(dtype), rngs=rngs
        )

    def __call__(self, x, time, context):
        return self.attention(self.res(x, self.res.time_bias(time)), context)


GRAPH, STATE = nnx.split(Net(jnp.bfloat16))
PARAMS = jax.tree.map(lambda leaf: normal(*leaf.shape), nnx.to_pure_dict(STATE))
INPUTS = [
    jnp.asarray(normal(*shape, seed=i), jnp.bfloat16)
    for i, shape in enumerate([(2, 4, 4, 8), (2, 6), (2, 3, 6)])
]


def run(params):
    return np.asarray(
        jax.jit(lambda params: nnx.merge(GRAPH, quantization.dequantize(params))(*INPUTS))(params),
        np.float32,
    )


def test_rounding_once_is_rounding_where_they_are_used():
    rounded = quantization.in_dtype(PARAMS, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {
        jnp.dtype("bfloat16"),
        jnp.dtype("float32"),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded["res"]["norm_1"])} == {
        jnp.dtype("float32")
    }
    np.testing.assert_array_equal(run(rounded), run(PARAMS))


def test_8_bit_kernels_are_near_and_small():
    packed = quantization.in_int8(PARAMS, jnp.bfloat16)
    kernel = packed["res"]["conv_1"]["kernel"]
    assert kernel.values.dtype == jnp.int8 and kernel.scale.shape == (8,)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert size(packed) < 0.4 * size(PARAMS)
    exact, near = run(PARAMS), run(packed)
    assert 0 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_a_channel_of_zeros():
    kernel = normal(3, 4) * np.array([1, 0, 2, 100], np.float32)
    packed = quantization.to_int8(kernel, jnp.float32)
    assert (np.abs(np.asarray(packed.dense()) - kernel) <= np.abs(kernel).max(axis=0) / 253).all()
    assert np.abs(packed.values).max(axis=0).tolist() == [127, 0, 127, 127]


def test_in_a_loop_they_stay_8_bit():
    """Dense kernels are not carried into the loop: what it needs beyond its arguments is less than
    they would take.
    """
    kernels = [quantization.to_int8(normal(256, 256, seed=i), jnp.float32) for i in range(8)]

    def loop(kernels, x, beside):
        def body(x, _):
            for kernel in quantization.dequantize(kernels, x if beside else None):
                x = jnp.tanh(x @ kernel)
            return x, None

        return jax.lax.scan(body, x, length=3)[0]

    def needed(beside):
        lowered = jax.jit(loop, static_argnums=2).lower(kernels, jnp.ones((2, 256)), beside)
        # As on accelerators; on a CPU the schedule is by default one for many threads, and makes
        # them all dense first.
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    one = 4 * 256 * 256
    assert needed(True) < 2 * one and needed(False) > 7 * one
