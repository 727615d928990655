"""Guidance without overexposure."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rescale_guidance(guided: jax.Array, with_text: jax.Array, phi: float | jax.Array) -> jax.Array:
    """The guided prediction at, by the share phi, the standard deviation that the prediction with
    the text has (arXiv 2305.08891, eq. 14-16).

    guided, with_text: (B, h, w, C) float32; the deviations are each picture's own. phi: 0 leaves
    `guided` as it is; the paper takes 0.7 for models of zero terminal SNR, which guidance otherwise
    drives to over-exposed pictures."""
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(with_text, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return guided * (phi * ratio + (1 - phi))
