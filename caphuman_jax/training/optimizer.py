"""Optax as the training steps use it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def update(optimizer: optax.GradientTransformation, grads, state, params):
    """(new parameters, new optimizer state) after one step."""
    # Optax itself relies on promotion between integer counts and weak floats.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def average(before, params, decay: float, step):
    """Exponential moving average of parameters; the first steps count for more, as nothing has been
    learnt yet.
    """
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e * decay + p * (1 - decay), before, params)
