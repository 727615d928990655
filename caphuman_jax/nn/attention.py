"""The one attention function that every network uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, *, causal: bool = False, backend: str = "auto"
) -> jax.Array:
    """Multi-head scaled dot-product attention with a float32 softmax.

    Args:
        query: (B, L, heads·D).
        key, value: (B, S, heads·D), of the query's dtype.
        heads: number of heads; they lie next to each other on the last axis.
        causal: a position sees only itself and those before it.
        backend: "xla"; "cudnn" (NVIDIA, bfloat16 or float16, L even, D a multiple of 8 up to 128); or "auto", which takes
            cudnn where it can run and XLA elsewhere.
    Returns:
        (B, L, heads·D) in the query's dtype.
    Raises:
        ValueError: for an unknown backend.
    """
    batch, queries, width = query.shape
    keys = key.shape[1]
    head_width = width // heads
    if backend == "auto":
        backend = "cudnn" if _cudnn_fits(query.dtype, queries, head_width) else "xla"
    if backend not in ("xla", "cudnn"):
        raise ValueError(f"unknown attention backend {backend!r}; known: auto, xla, cudnn")

    lengths = None
    if backend == "cudnn" and keys % 2:
        # cuDNN's backward pass takes even lengths only: one key is added and masked out.
        key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (key, value))
        lengths = jnp.full((batch,), keys, jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code promotes bfloat16 to float32 for the softmax.
        out = jax.nn.dot_product_attention(
            query.reshape(batch, queries, heads, head_width),
            key.reshape(batch, -1, heads, head_width),
            value.reshape(batch, -1, heads, head_width),
            is_causal=causal,
            key_value_seq_lengths=lengths,
            implementation=backend,
        )
    return out.reshape(batch, queries, width)


def _cudnn_fits(dtype, queries: int, head_width: int) -> bool:
    half = dtype in (jnp.bfloat16, jnp.float16)
    return half and queries % 2 == 0 and head_width % 8 == 0 and head_width <= 128 and jax.default_backend() == "gpu"
