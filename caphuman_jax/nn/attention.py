"""The one attention function that every network uses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from caphuman_jax.nn.compute_config import ComputeConfig

# From so many positions on, splash is taken on a TPU by itself. Below, XLA's whole softmax is
# small.
_SPLASH_FROM = 1024


def attention(
    query: Float[Array, "b l w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    heads: int,
    *,
    causal: bool = False,
    compute: ComputeConfig = ComputeConfig(),
) -> Float[Array, "b l w"]:
    """Multi-head scaled dot-product attention with a float32 softmax.

    Args:
        query: (B, L, heads·D).
        key, value: (B, S, heads·D), of the query's dtype.
        heads: number of heads; they lie next to each other on the last axis.
        causal: a position sees only itself and those before it.
        compute: its `attention` is the backend: "xla"; "cudnn" (NVIDIA, bfloat16 or float16, L
            even, D a multiple of 8 up to 128, from Hopper on 256) or "splash" (TPU, L and S
            multiples of 128, not causal), neither of which holds an (L, S) array; or "auto", one
            of these where it can run and pays, XLA elsewhere.

    Returns:
        (B, L, heads·D) in the query's dtype.
    """
    batch, queries, width = query.shape
    keys = key.shape[1]
    head_width = width // heads
    backend = compute.attention_for(queries)
    if backend == "auto":
        backend = _best(query.dtype, queries, keys, head_width, causal, compute)

    lengths = None
    if backend == "cudnn" and keys % 2:
        # cuDNN's backward pass takes even lengths only: one key is added and masked out.
        key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (key, value))
        lengths = jnp.full((batch,), keys, jnp.int32)
    query, key, value = (x.reshape(batch, -1, heads, head_width) for x in (query, key, value))
    if backend not in ("xla", "cudnn", "splash"):
        raise ValueError(f"the attention backend {backend!r} has no implementation")
    if backend == "splash":
        return _splash(query, key, value, compute.mesh).reshape(batch, queries, width)

    def run(query, key, value):
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            key_value_seq_lengths=lengths,
            implementation="cudnn" if backend == "cudnn" else "xla",
        )

    with jax.numpy_dtype_promotion(
        "standard"
    ):  # JAX's own code promotes bfloat16 to float32 for the softmax.
        out = (compute.remat_attention(run) if backend == "xla" else run)(query, key, value)
    return out.reshape(batch, queries, width)


def _best(
    dtype, queries: int, keys: int, head_width: int, causal: bool, compute: ComputeConfig
) -> str:
    half, platform = dtype in (jnp.bfloat16, jnp.float16), compute.platform_name()
    if (
        platform == "gpu"
        and half
        and queries % 2 == 0
        and head_width % 8 == 0
        and head_width <= _widest_head()
    ):
        return "cudnn"
    fits = (
        half
        and min(queries, keys) >= _SPLASH_FROM
        and queries % 128 == keys % 128 == 0
        and not causal
    )
    if platform == "tpu" and fits and (compute.mesh is not None or jax.device_count() == 1):
        return "splash"
    return "xla"


def _widest_head() -> int:
    """Of cuDNN's fused attention on the devices at hand, 0 on AMD's, which have no cuDNN; what is
    compiled for others is taken to be older.
    """
    capability = getattr(jax.devices()[0], "compute_capability", None) or "0"
    if capability.startswith("gfx"):
        return 0
    return 256 if float(capability) >= 9 else 128


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, mesh: Mesh | None) -> jax.Array:
    """(B, L, heads, D) with JAX's TPU kernel, on each device for its own part of the batch."""
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    run: Any = jax.vmap(_splash_kernel(query.shape[2], query.shape[1], key.shape[1]))
    if mesh is not None and mesh.size > 1:
        batch = PartitionSpec(mesh.axis_names)
        run = jax.shard_map(run, mesh=mesh, in_specs=batch, out_specs=batch, check_vma=False)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (scaled, key, value))
    with jax.numpy_dtype_promotion("standard"):
        return run(*heads_first).transpose(0, 2, 1, 3)


def _splash_kernel(heads: int, queries: int, keys: int):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    fits = lambda length: next(block for block in (512, 256, 128) if length % block == 0)
    q, kv = fits(queries), fits(keys)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.FullMask((queries, keys))] * heads
    )
    return splash_attention_kernel.make_splash_mha_single_device(mask, block_sizes=blocks)
