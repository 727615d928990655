"""From noise to latents: DDIM (arXiv 2010.02502) as one pure step and as a whole loop, and where the noise comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.diffusion.schedule import Steps

Denoise = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""denoise(latents (B, h, w, C) float32, timestep () int32, step_constants) → the prediction, shaped as the latents."""


def picture_keys(seed: int | jax.Array, indices: Sequence[int] | jax.Array) -> jax.Array:
    """One random key for each picture, (N,): a function of the seed and the picture's own index alone.

    So picture 3 of 8 is the same picture when it is made alone, or on another number of devices.
    """
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(indices, jnp.uint32))


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal latents (N, *shape) float32 to begin with, one picture for each of the keys (N,)."""
    return _normal(keys, 0, shape)


def split_prediction(
    output: jax.Array, latents: jax.Array, alpha: jax.Array, prediction: str = "epsilon"
) -> tuple[jax.Array, jax.Array]:
    """The (x0, noise) that a denoiser's output means at signal level alpha (scalar), for either kind of prediction."""
    signal, spread = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    if prediction == "epsilon":
        return (latents - spread * output) / signal, output
    if prediction == "v":
        return signal * latents - spread * output, signal * output + spread * latents
    raise ValueError(f"prediction is {prediction!r}; known: epsilon, v")


def ddim_step(
    latents: jax.Array,
    output: jax.Array,
    alpha: jax.Array,
    alpha_prev: jax.Array,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    noise: jax.Array | None = None,
) -> jax.Array:
    """One DDIM step (eq. 12) from signal level `alpha` to `alpha_prev` (scalars); everything in float32.

    eta 0 is deterministic and 1 as noisy as DDPM; above 0 it needs unit normal `noise`, shaped as the latents.
    """
    output = output.astype(jnp.float32)
    x0, direction = split_prediction(output, latents, alpha, prediction)
    if eta == 0.0:
        return jnp.sqrt(alpha_prev) * x0 + jnp.sqrt(1 - alpha_prev) * direction
    if noise is None:
        raise ValueError("eta above 0 needs noise")
    sigma = eta * jnp.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))  # eq. 16
    return jnp.sqrt(alpha_prev) * x0 + jnp.sqrt(1 - alpha_prev - sigma**2) * direction + sigma * noise


def sample(
    denoise: Denoise,
    latents: jax.Array,
    steps: Steps,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    keys: jax.Array | None = None,
    step_constants: Any = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The whole sampling loop, traced once whatever the number of steps.

    latents: (B, h, w, C) float32, unit normal; keys: (B,), needed where eta > 0; step_constants: a pytree whose leaves
    have the steps as their first axis (timestep embeddings, for instance), handed to `denoise` one step at a time.
    Returns the clean latents (B, h, w, C), with `trajectory` also those after every step (S, B, h, w, C).
    """
    if eta != 0.0 and keys is None:
        raise ValueError("eta above 0 needs keys")

    def body(latents, step):
        index, (timestep, alpha, alpha_prev), constants = step
        output = denoise(latents, timestep, constants)
        noise = _normal(keys, index + 1, latents.shape[1:]) if eta != 0.0 else None
        latents = ddim_step(latents, output, alpha, alpha_prev, prediction=prediction, eta=eta, noise=noise)
        return latents, latents if trajectory else None

    count = steps.timesteps.shape[0]
    steps = Steps(*map(jnp.asarray, steps))
    final, after_each = jax.lax.scan(body, latents.astype(jnp.float32), (jnp.arange(count), steps, step_constants))
    return (final, after_each) if trajectory else final


def _normal(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal numbers (N, *shape) for draw number `index` (0: the start, i + 1: step i) of each picture."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))(keys)
