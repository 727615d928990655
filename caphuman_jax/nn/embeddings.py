"""Embeddings: rows of a table by number, and sinusoidal features of the timestep."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def rows(table, ids):
    """`table[ids]`: (V, D) and integers (...) in [0, V) -> (..., D).

    The gradient of the table adds up rows of the same number first and writes each number once.
    XLA's own adds them with atomics in turn: captions are filled up with their end token, thousands
    of times a batch. It also has the same bits in every run."""
    return table[ids]


def _forward(table, ids):
    return table[ids], (ids, table)


def _backward(kept, towards):
    ids, table = kept
    ids, towards = ids.reshape(-1), towards.reshape(-1, table.shape[1])
    order = jnp.argsort(ids)
    ids, towards = ids[order], towards[order]
    new = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
    _, sums = jax.lax.associative_scan(_add_up, (new[:, None], towards.astype(jnp.float32)))
    last = jnp.concatenate([new[1:], jnp.ones(1, bool)])
    written = jnp.where(last, ids, len(table))  # beyond the table: left out
    return jnp.zeros_like(table).at[written].set(sums.astype(table.dtype), mode="drop"), None


def _add_up(left, right):
    """Sums that begin anew where `new`."""
    (left_new, left_sum), (right_new, right_sum) = left, right
    return left_new | right_new, jnp.where(right_new, right_sum, left_sum + right_sum)


rows.defvjp(_forward, _backward)


def timestep_embedding(timesteps: Float[Array, " s"], width: int) -> Float[Array, "s {width}"]:
    """Features of the diffusion timestep, cosines before sines (the order of latent diffusion's
    weights).

    timesteps (B,) float32, in training steps (0 … 999) → (B, width) float32; `width` even. The
    frequencies fall geometrically from 1 to 1/10000 (Vaswani et al. 2017, section 3.5). bfloat16
    cannot hold timesteps: it is refused."""
    if timesteps.dtype != jnp.float32:
        raise TypeError(f"timesteps must be float32, not {timesteps.dtype}")
    half = width // 2
    frequencies = jnp.exp(
        jnp.arange(half, dtype=jnp.float32) * jnp.float32(-math.log(10000) / half)
    )
    angles = timesteps[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
