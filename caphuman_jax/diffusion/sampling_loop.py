"""From noise to latents: one loop that follows the plan of any sampler, and where the noise comes
from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.diffusion.samplers import SAMPLERS, Plan, plan

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Plan",
    "initial_noise",
    "picture_key",
    "picture_keys",
    "plan",
    "sample",
    "split_prediction",
]

Denoise = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""denoise(latents (B, h, w, C) float32, timestep () float32, step_constants) → the prediction,
shaped as the latents.
"""


def picture_key(seed: int | jax.Array, index: int | jax.Array) -> jax.Array:
    """The random key of one picture: a function of the seed and the picture's own index alone, both
    uint32.

    So picture 3 of 8 is the same picture when it is made alone, in other company, or on another
    number of devices."""
    return jax.random.fold_in(jax.random.key(seed), index)


def picture_keys(seed: int | jax.Array, indices: Sequence[int] | jax.Array) -> jax.Array:
    """`picture_key` of the pictures of one seed, (N,)."""
    return jax.vmap(lambda index: picture_key(seed, index))(jnp.asarray(indices, jnp.uint32))


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal latents (N, *shape) float32 to begin with, one picture for each of the keys (N,)."""
    return _normal(keys, 0, shape)


def split_prediction(
    output: jax.Array,
    latents: jax.Array,
    signal: jax.Array,
    spread: jax.Array,
    prediction: str = "epsilon",
) -> tuple[jax.Array, jax.Array]:
    """The (x0, noise) that a denoiser's output means for latents = signal · x0 + spread · noise
    (scalars), for either kind of prediction.
    """
    if prediction == "epsilon":
        return (latents - spread * output) / signal, output
    if prediction == "v":
        return signal * latents - spread * output, signal * output + spread * latents
    raise ValueError(f"prediction is {prediction!r}; known: epsilon, v")


def sample(
    denoise: Denoise,
    latents: jax.Array,
    plan: Plan,
    *,
    prediction: str = "epsilon",
    keys: jax.Array | None = None,
    step_constants: Any = None,
    memory: Any = None,
    trajectory: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The whole sampling loop, traced once whatever the number of steps; its state is float32.

    latents: (B, h, w, C) float32, unit normal whatever the sampler; plan: of `plan`; keys: (B,),
    needed where the plan has noise;
    step_constants: a pytree whose leaves have the plan's steps as their first axis (timestep
    embeddings, for instance), handed to `denoise` one step at a time. memory: a pytree that
    `denoise` takes as its last argument and returns anew after its prediction, for what it keeps
    from step to step; None: it takes and returns none. Only what the plan looks back to is kept
    from step to step. Returns the clean latents (B, h, w, C), with `trajectory` also those after
    every step (S, B, h, w, C)."""
    if plan.noise is not None and keys is None:
        raise ValueError("this plan has noise, which needs keys")

    def body(state, step):
        x, last_latents, last_x0, earlier_x0, kept = state
        index, row, constants = step
        output = denoise(x, row.timesteps, constants, *([] if kept is None else [kept]))
        output, kept = (output, None) if kept is None else output
        output = output.astype(jnp.float32)
        x0, _ = split_prediction(output, x, row.signal, row.spread, prediction)
        if row.corrector is not None:
            c = row.corrector
            x = (
                c.last_latents * last_latents
                + c.x0 * x0
                + c.last_x0 * last_x0
                + c.earlier_x0 * earlier_x0
            )
            last_latents, earlier_x0 = x, last_x0
        following = row.latents * x + row.x0 * x0
        if row.last_x0 is not None:
            following, last_x0 = following + row.last_x0 * last_x0, x0
        if row.noise is not None:
            following = following + row.noise * _normal(keys, index + 1, x.shape[1:])
        return (
            following,
            last_latents,
            last_x0,
            earlier_x0,
            kept,
        ), following if trajectory else None

    x = latents.astype(jnp.float32)
    state = (
        x,
        None if plan.corrector is None else x,
        None if plan.last_x0 is None else jnp.zeros_like(x),
        None if plan.corrector is None else jnp.zeros_like(x),
        memory,
    )
    rows = (jnp.arange(plan.steps), jax.tree.map(jnp.asarray, plan), step_constants)
    (final, *_), after_each = jax.lax.scan(body, state, rows)
    return (final, after_each) if trajectory else final


def _normal(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal numbers (N, *shape) for draw number `index` (0: the start, i + 1: step i) of each
    picture.
    """
    return jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
    )(keys)
