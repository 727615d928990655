import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.nn import compute_config
from caphuman_jax.nn.attention import attention
from caphuman_jax.nn.compute_config import ComputeConfig

attention_module = sys.modules["caphuman_jax.nn.attention"]


def brute_force(query, key, value, heads, causal):
    """float64, one head and one batch item at a time."""
    out = np.empty_like(query, dtype=np.float64)
    width = query.shape[-1] // heads
    for b in range(len(query)):
        for h in range(heads):
            q, k, v = (
                x[b, :, h * width : (h + 1) * width].astype(np.float64) for x in (query, key, value)
            )
            logits = q @ k.T / np.sqrt(width)
            if causal:
                logits[np.triu_indices(len(logits), 1)] = -np.inf
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[b, :, h * width : (h + 1) * width] = (
                weights / weights.sum(axis=1, keepdims=True) @ v
            )
    return out


def inputs(queries, keys, width):
    rng = np.random.default_rng(0)
    return [
        2 * rng.standard_normal((2, n, width)).astype(np.float32) for n in (queries, keys, keys)
    ]


@pytest.mark.parametrize(
    "queries, keys, causal", [(16, 16, False), (16, 7, False), (5, 1, False), (9, 9, True)]
)
def test_is_softmax_attention(queries, keys, causal):
    q, k, v = inputs(queries, keys, 24)
    out = attention(*map(jnp.asarray, (q, k, v)), heads=3, causal=causal)
    np.testing.assert_allclose(out, brute_force(q, k, v, 3, causal), atol=1e-5)


def test_softmax_is_float32_in_bfloat16():
    q, k, v = (jnp.asarray(x).astype(jnp.bfloat16) for x in inputs(64, 64, 16))
    out = attention(q, k, v, heads=1)
    assert out.dtype == jnp.bfloat16
    expected = brute_force(*(np.asarray(x, np.float32) for x in (q, k, v)), 1, False)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.04)


@pytest.mark.parametrize(
    "capability, width, expected",
    [
        (None, 160, "xla"),
        ("8.0", 160, "xla"),
        ("9.0", 160, "cudnn"),
        ("10.0", 256, "cudnn"),
        ("9.0", 512, "xla"),
        ("8.0", 128, "cudnn"),
        ("9.0", 20, "xla"),
        ("gfx90a", 64, "xla"),
        ("gfx942", 128, "xla"),
    ],
)
def test_on_a_gpu_heads_up_to_what_it_can_are_cudnns(monkeypatch, capability, width, expected):
    """The VAE's one head of 512 never is, and before Hopper none above 128."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    best = lambda dtype: attention_module._best(
        dtype, 256, 77, width, False, ComputeConfig(platform="gpu")
    )
    assert best(jnp.bfloat16) == expected
    assert best(jnp.float32) == "xla"


def test_a_backend_that_is_named_and_not_written_is_an_error(monkeypatch):
    monkeypatch.setattr(compute_config, "ATTENTION", (*compute_config.ATTENTION, "new"))
    with pytest.raises(ValueError, match="'new' has no implementation"):
        attention(*map(jnp.asarray, inputs(4, 4, 8)), 1, compute=ComputeConfig(attention="new"))
