"""8-bit floating-point products against NumPy's arithmetic with ml_dtypes, and which layers they
are taken for.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.config import SD15
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.nn import fp8
from caphuman_jax.nn.blocks import TransformerBlock
from caphuman_jax.nn.compute_config import ComputeConfig


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x):
    """To the nearest e4m3, as float64; what is larger than the largest, to that."""
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_is_that_of_rounded_factors(dtype):
    x = normal(2, 5, 32) * np.logspace(-5, 5, 32, dtype=np.float32)  # to zero and beyond 448
    x = np.asarray(jnp.asarray(x, dtype), np.float32)
    kernel, bias, factor = normal(32, 7, seed=1), normal(7, seed=2), np.float32(0.37)
    small = fp8.Fp8(jnp.asarray((kernel / factor).T).astype(fp8.E4M3), jnp.asarray(factor))
    found = jax.jit(fp8.product)(jnp.asarray(x, dtype), small, jnp.asarray(bias, dtype))
    exact = rounded(x * factor) @ rounded(kernel / factor)
    bias = np.asarray(jnp.asarray(bias, dtype), np.float64)
    assert found.dtype == dtype and np.abs(x * factor).max() > 448
    error = np.abs(np.asarray(found, np.float64) - exact - bias)
    assert error.max() < (1e-6 if dtype == jnp.float32 else 8e-3) * np.abs(exact).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_block_is_near_the_exact_one(dtype):
    block = TransformerBlock(32, 24, 4, groups=4, compute=ComputeConfig(dtype), rngs=nnx.Rngs(0))
    graph, state = nnx.split(block)
    params = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape) if leaf.ndim == 1 else normal(*leaf.shape) / 6,
        nnx.to_pure_dict(state),
    )
    params = jax.tree.map(jnp.asarray, params)
    x, context = (jnp.asarray(normal(*shape), dtype) for shape in ((2, 4, 4, 32), (2, 3, 24)))

    def run(params, small):
        params = fp8.with_fp8_products({"1": params})["1"] if small else params
        return nnx.merge(graph, params)(x, context).astype(jnp.float32)

    exact, near = (np.asarray(jax.jit(run, static_argnums=1)(params, small)) for small in (0, 1))
    error = np.sqrt(np.square(near - exact).mean() / np.square(exact - np.asarray(x)).mean())
    assert 0.001 < error < 0.06  # e4m3 rounds by 2.6 % (root of the mean square)


def test_layers():
    """Feed-forward layers but the outermost."""
    levels = {"channel_multipliers": (1, 2), "attention_resolutions": (1, 2), "blocks_per_level": 1}
    small = {"channels": 8, "groups": 4, "cross_attention_dim": 8, "heads": 2}
    config = dataclasses.replace(SD15, unet=dataclasses.replace(SD15.unet, **small, **levels))
    networks = registry.abstract(config, only=("unet", "capface"))
    is_fp8 = lambda leaf: isinstance(leaf, fp8.Fp8)
    layers = ["feed_forward.up", "feed_forward.down"]
    encoder = ["encoder.down.1.attention_0", "encoder.middle.attention"]
    decoder = ["up.1.attention_0", "up.1.attention_1"]
    for name, blocks in {"unet": encoder + decoder, "capface": encoder}.items():
        found = jax.eval_shape(fp8.with_fp8_products, networks[name][1])
        paths = jax.tree.leaves_with_path(found, is_leaf=is_fp8)
        chosen = {".".join(k.key for k in path) for path, leaf in paths if is_fp8(leaf)}
        assert chosen == {f"{block}.{layer}.kernel" for block in blocks for layer in layers}


@pytest.mark.parametrize(
    "platform, capability, able",
    [("cpu", None, False), ("gpu", "8.0", False), ("gpu", "9.0", True), ("gpu", "gfx942", False)],
)
def test_devices(platform, capability, able):
    device = SimpleNamespace(platform=platform, device_kind="this one")
    if capability:
        device.compute_capability = capability
    if able:
        fp8.check_device(device)
    else:
        with pytest.raises(SettingError, match="fp8 needs an NVIDIA GPU .* is this one"):
            fp8.check_device(device)


def test_a_request_is_refused_before_its_photo_is_read(pipe):
    with pytest.raises(SettingError, match="precision fp8 needs"):
        pipe(reference="missing.png", prompt="a photo", precision="fp8")
