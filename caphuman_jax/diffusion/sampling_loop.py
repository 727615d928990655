"""From noise to latents: one loop that follows any sampler, and where the noise comes
from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from caphuman_jax.diffusion.samplers import SamplerCoefficients
from caphuman_jax.nn.typing import Array

Denoise = Callable[[Array, Array, Any, Any], tuple[Array, Any]]
"""denoise(latents (B, h, w, C) float32, timestep () float32, step_constants, carry) → the
prediction, shaped as the latents, and the carry for the next step.
"""


class Known(NamedTuple):
    """Latents that are known where the mask is 0.

    Attributes:
        latents: (B, h, w, C) float32, clean.
        mask: (B, h, w, 1) float32 in [0, 1]: 1 where latents are sampled, 0 where they are kept.
        noise: (B, h, w, C) float32 unit normal; the same at every noise level.
    """

    latents: Array
    mask: Array
    noise: Array


def denoise_by_step(name: str, where_true: Denoise, where_false: Denoise) -> Denoise:
    """Make a denoiser that runs one of two, whichever the step constant `name`, a bool, says; the
    other is not computed.
    """

    def either(latents, timestep, step, carry):
        at_step = lambda denoise: lambda latents, carry: denoise(latents, timestep, step, carry)
        return jax.lax.cond(step[name], at_step(where_true), at_step(where_false), latents, carry)

    return either


def picture_key(seed: int | jax.Array, index: int | jax.Array) -> jax.Array:
    """The random key of one picture: a function of the seed and the picture's own index alone, both
    uint32.

    So picture 3 of 8 is the same picture when it is made alone, in other company, or on another
    number of devices."""
    return jax.random.fold_in(jax.random.key(seed), index)


def picture_keys(seed: int | jax.Array, indices: Sequence[int] | jax.Array) -> jax.Array:
    """`picture_key` of the pictures of one seed, (N,)."""
    return jax.vmap(lambda index: picture_key(seed, index))(jnp.asarray(indices, jnp.uint32))


def initial_noise(keys: Key[Array, " n"], shape: tuple[int, ...]) -> Float[Array, " n *shape"]:
    """Unit normal latents (N, *shape) float32 to begin with, one picture for each of the
    keys (N,).
    """
    return _normal(keys, 0, shape)


def split_prediction(
    output: Float[Array, " b *latent"],
    latents: Float[Array, " b *latent"],
    alpha_t: Float[Array, ""],
    sigma_t: Float[Array, ""],
    prediction_type: str = "epsilon",
) -> tuple[Float[Array, " b *latent"], Float[Array, " b *latent"]]:
    """The (x0, noise) that a denoiser's output means for latents = alpha_t · x0 + sigma_t · noise
    (scalars), for either kind of prediction.
    """
    if prediction_type == "epsilon":
        return (latents - sigma_t * output) / alpha_t, output
    if prediction_type == "v":
        return alpha_t * latents - sigma_t * output, alpha_t * output + sigma_t * latents
    raise ValueError(f"prediction_type is {prediction_type!r}; known: epsilon, v")


def sample(
    denoise: Denoise,
    latents: Float[Array, "b h w c"],
    sampler: SamplerCoefficients,
    *,
    prediction_type: str = "epsilon",
    keys: Key[Array, " b"] | None = None,
    step_constants: Any = None,
    carry: Any = None,
    trajectory: bool = False,
    first: Int[Array, ""] | None = None,
    known: Known | None = None,
) -> Float[Array, "b h w c"] | tuple[Float[Array, "b h w c"], Float[Array, "s b h w c"]]:
    """Run the sampling loop, traced once whatever the number of steps; its state is float32.

    Args:
        denoise: The network, called once a step.
        latents: (B, h, w, C) float32: unit normal whatever the sampler, or with `first`
            `noised` to that step's noise level.
        sampler: Of `samplers.make_sampler`.
        prediction_type: What `denoise` predicts, "epsilon" or "v".
        keys: (B,) random keys, one an image; needed where the sampler adds noise.
        step_constants: Pytree whose leaves have the sampler's steps as their first axis (timestep
            embeddings, for instance); `denoise` gets one step's.
        carry: Pytree handed from step to step: `denoise` takes it and returns the next.
        trajectory: Return the latents after every step, too.
        first: Number of the first step; those before it are not computed. May be traced. The
            sampler's table is then of `samplers.start_at`. None: the first of all.
        known: What is put back after every step, at the noise level of the next (x ← m·x +
            (1 − m)·(alpha_t·latents + sigma_t·noise), as in RePaint, arXiv 2201.09865, eq. 8, and
            in Diffusers' inpainting).

    Returns:
        The clean latents (B, h, w, C); with `trajectory` also those after every step
        (S, B, h, w, C).

    Raises:
        ValueError: The sampler adds noise and `keys` is None.
    """
    if sampler.noise is not None and keys is None:
        raise ValueError("this sampler adds noise, which needs keys")

    levels = None if known is None else _levels_after(sampler)

    def follow(state, step):
        x, last_latents, last_x0, earlier_x0, carry = state
        index, row, constants, level = step
        output, carry = denoise(x, row.timesteps, constants, carry)
        output = output.astype(jnp.float32)
        x0, _ = split_prediction(output, x, row.alpha_t, row.sigma_t, prediction_type)
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
        if row.noise is not None and keys is not None:
            following = following + row.noise * _normal(keys, index + 1, x.shape[1:])
        if known is not None:
            kept = noised(known.latents, known.noise, *level)
            following = known.mask * following + (1 - known.mask) * kept
        return following, last_latents, last_x0, earlier_x0, carry

    def body(state, step):
        if first is None:
            state = follow(state, step)
        else:
            skip = lambda state, step: state
            state = jax.lax.cond(step[0] >= first, follow, skip, state, step)
        return state, state[0] if trajectory else None

    x = latents.astype(jnp.float32)
    state = (
        x,
        None if sampler.corrector is None else x,
        None if sampler.last_x0 is None else jnp.zeros_like(x),
        None if sampler.corrector is None else jnp.zeros_like(x),
        carry,
    )
    table = jax.tree.map(jnp.asarray, sampler)
    rows = (jnp.arange(sampler.steps), table, step_constants, levels)
    (final, *_), after_each = jax.lax.scan(body, state, rows)
    if not trajectory:
        return final
    assert after_each is not None
    return final, after_each


def noised(
    latents: Float[Array, " b *latent"],
    noise: Float[Array, " b *latent"],
    alpha_t: Float[Array, ""],
    sigma_t: Float[Array, ""],
) -> Float[Array, " b *latent"]:
    """Clean latents with noise of one level: alpha_t · latents + sigma_t · noise (scalars)."""
    return alpha_t * latents + sigma_t * noise


def _levels_after(sampler: SamplerCoefficients) -> tuple[jax.Array, jax.Array]:
    """(alpha_t, sigma_t), each (S,): the noise levels after every step, none after the last."""
    after = lambda column, end: jnp.append(jnp.asarray(column)[1:], jnp.float32(end))
    return after(sampler.alpha_t, 1.0), after(sampler.sigma_t, 0.0)


def _normal(
    keys: Key[Array, " n"], index: int | jax.Array, shape: tuple[int, ...]
) -> Float[Array, " n *shape"]:
    """Unit normal numbers (N, *shape) for draw number `index` (0: the start, i + 1: step i) of each
    picture.
    """
    return jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
    )(keys)
