import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from caphuman_jax.nn import fused
from caphuman_jax.nn.blocks import FeedForward
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import GroupNorm


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # which sums in parts and what is made again
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_and_its_gradients_are_pytorchs(silu, platform):
    x, scale, bias, weight = (
        3 * normal((2, 5, 6, 12)) + 1,
        1 + normal((12,), 1),
        normal((12,), 2),
        normal((2, 5, 6, 12), 3),
    )
    there = [
        torch.from_numpy(a.copy()).requires_grad_() for a in (x.transpose(0, 3, 1, 2), scale, bias)
    ]
    expected = torch.nn.functional.group_norm(there[0], 4, there[1], there[2], 1e-5)
    expected = torch.nn.functional.silu(expected) if silu else expected
    (expected * torch.from_numpy(weight.transpose(0, 3, 1, 2).copy())).sum().backward()
    run = lambda *a: fused.group_norm(*a, 4, 1e-5, silu, platform)
    got, pull = jax.vjp(run, *map(jnp.asarray, (x, scale, bias)))
    dx, dscale, dbias = pull(jnp.asarray(weight))
    np.testing.assert_allclose(got, expected.detach().numpy().transpose(0, 2, 3, 1), atol=2e-6)
    np.testing.assert_allclose(dx, there[0].grad.numpy().transpose(0, 2, 3, 1), atol=3e-6)
    np.testing.assert_allclose(dscale, there[1].grad, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, there[2].grad, rtol=2e-5, atol=1e-5)


def test_group_norm_of_bfloat16_is_that_of_float32_rounded_once():
    x = jnp.asarray(normal((2, 8, 8, 64)) * 5 + 10).astype(jnp.bfloat16)
    norm = GroupNorm(64, groups=8, compute=ComputeConfig())
    norm.scale[...], norm.bias[...] = jnp.asarray(normal((64,), 1)), jnp.asarray(normal((64,), 2))
    half, whole = norm(x, silu=True), norm(x.astype(jnp.float32), silu=True)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=2**-8, atol=1e-5)


def test_group_norm_of_equal_numbers_is_its_bias():
    """The variance is the difference of two equal squares, which must not come out below zero."""
    x = jnp.full((1, 16, 16, 8), 333, jnp.bfloat16)
    out = fused.group_norm(x, jnp.ones(8), jnp.full(8, 0.5), 2, 1e-5, False, "cpu")
    np.testing.assert_allclose(out.astype(jnp.float32), 0.5, atol=0.05)


def test_geglu_layer_and_its_gradients_are_pytorchs():
    x, kernel, bias, weight = (
        normal((3, 7, 12)),
        normal((12, 32), 1),
        normal((32,), 2),
        normal((3, 7, 16), 3),
    )
    there = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, kernel, bias)]
    value, gate = (there[0] @ there[1] + there[2]).chunk(2, dim=-1)
    expected = value * torch.nn.functional.gelu(gate)
    (expected * torch.from_numpy(weight)).sum().backward()
    given = tuple(map(jnp.asarray, (x, kernel, bias)))
    np.testing.assert_allclose(fused.geglu_layer(*given), expected.detach(), atol=1e-5)
    got, pull = jax.vjp(fused.geglu_layer, *given)
    np.testing.assert_allclose(got, expected.detach(), atol=1e-5)
    for mine, theirs in zip(pull(jnp.asarray(weight)), there):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-5, atol=2e-5)


def test_gelu_is_the_exact_one_within_a_millionth():
    x = jnp.linspace(-6, 6, 4001, dtype=jnp.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(np.array(x, np.float64))).numpy()
    np.testing.assert_allclose(fused.gelu(x), exact, rtol=2**-9, atol=1e-6)


def test_feed_forward_in_bfloat16_is_that_in_float32():
    x = normal((2, 9, 32))
    layers = {
        dtype: FeedForward(32, compute=ComputeConfig(dtype), rngs=nnx.Rngs(0))
        for dtype in (jnp.bfloat16, jnp.float32)
    }
    for layer in layers.values():
        layer.up.bias[...] = jnp.asarray(normal((256,), 4))
    half, whole = (
        layer(jnp.asarray(x).astype(dtype)).astype(jnp.float32) for dtype, layer in layers.items()
    )
    np.testing.assert_allclose(half, whole, atol=0.02 * float(jnp.abs(whole).max()))


def test_feed_forward_in_bfloat16_has_the_gradients_of_float32():
    x = normal((2, 9, 32))

    def gradients(dtype):
        graph, params = nnx.split(FeedForward(32, compute=ComputeConfig(dtype), rngs=nnx.Rngs(0)))
        loss = lambda params: jnp.sum(
            jnp.square(nnx.merge(graph, params)(jnp.asarray(x).astype(dtype)).astype(jnp.float32))
        )
        return jax.tree.leaves(jax.grad(loss)(params))

    for half, whole in zip(gradients(jnp.bfloat16), gradients(jnp.float32)):
        np.testing.assert_allclose(half, whole, atol=0.03 * float(jnp.abs(whole).max()))
