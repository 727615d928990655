"""What the denoiser is trained to do: noising, targets, weights and CapHuman's loss. Pure
functions, float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from caphuman_jax.nn.typing import Array

BANDS = 10
"""Equal parts of the schedule for which the loss is reported apart."""


def add_noise(
    latents: Float[Array, " b *rest"],
    noise: Float[Array, " b *rest"],
    alpha_cumprod: Float[Array, " b"],
) -> Float[Array, " b *rest"]:
    """Noise clean latents (B, …) with unit normal noise (B, …) to ᾱ_t (B,): DDPM, eq. 4."""
    alpha_cumprod = _per_item(alpha_cumprod, latents)
    return jnp.sqrt(alpha_cumprod) * latents + jnp.sqrt(1 - alpha_cumprod) * noise


def prediction_target(
    latents: Float[Array, " b *rest"],
    noise: Float[Array, " b *rest"],
    alpha_cumprod: Float[Array, " b"],
    prediction_type: str = "epsilon",
) -> Float[Array, " b *rest"]:
    """What the denoiser should output: the noise, or v = sqrt(ᾱ_t) noise − sqrt(1 − ᾱ_t) x0
    (arXiv 2202.00512).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v":
        alpha_cumprod = _per_item(alpha_cumprod, latents)
        return jnp.sqrt(alpha_cumprod) * noise - jnp.sqrt(1 - alpha_cumprod) * latents
    raise ValueError(f"prediction_type is {prediction_type!r}; known: epsilon, v")


def min_snr_weight(
    alpha_cumprod: Float[Array, " b"], gamma: float = 5.0, prediction_type: str = "epsilon"
) -> Float[Array, " b"]:
    """Min-SNR weights (B,) for ᾱ_t (B,): arXiv 2303.09556, section 3.4. Infinite
    gamma: x0's own weight.
    """
    ratio = alpha_cumprod / (1 - alpha_cumprod)
    capped = jnp.minimum(ratio, jnp.asarray(gamma, ratio.dtype))
    return capped / ratio if prediction_type == "epsilon" else capped / (ratio + 1)


def capface_loss(
    output: Float[Array, " b *latents"],
    target: Float[Array, " b *latents"],
    mask: Float[Array, " b *mask"],
    face_mask: Float[Array, " b *face_mask"],
    *,
    mask_weight: float = 1.0,
    weights: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """CapHuman's training loss: mean (output − target)² + mask_weight · mean (face_mask − mask)².

    output, target: (B, h, w, C) the denoiser's output and `prediction_target`; mask: (B, h, w, 1)
    CapFace's mask in [0, 1]; face_mask: (B, h, w, 1) the face region of the target picture at
    latent size (`shrink_mask`);
    weights: (B,) per picture, for instance `min_snr_weight`.
    Returns the scalar loss and its two parts under "denoise" and "mask".
    """
    if mask.shape != face_mask.shape:
        raise ValueError(
            f"mask is {mask.shape} and face_mask {face_mask.shape}: the latent size is wanted for "
            f"both"
        )
    squares = jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32))
    per_picture = jnp.mean(squares, axis=tuple(range(1, squares.ndim)))
    denoise = jnp.mean(per_picture if weights is None else per_picture * weights)
    masks = jnp.mean(jnp.square(face_mask.astype(jnp.float32) - mask.astype(jnp.float32)))
    return denoise + mask_weight * masks, {"denoise": denoise, "mask": masks}


def by_time(
    output: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    timestep: Int[Array, " b"],
    steps: int,
    weight: Float[Array, " b"] | None = None,
) -> dict[str, jax.Array]:
    """Sums (BANDS,) of the pictures' squared errors by timestep, and how many pictures they are of.

    weight: (B,) what each picture's error has been multiplied with already, 0 for rows that only
    fill up."""
    error = jnp.mean(jnp.square(output.astype(jnp.float32) - target), axis=(1, 2, 3))
    band = jax.nn.one_hot(timestep * BANDS // steps, BANDS, dtype=jnp.float32)
    count = band if weight is None else band * weight[:, None]
    return {
        "loss_by_time": jnp.sum(band * error[:, None], axis=0),
        "loss_by_time_count": jnp.sum(count, axis=0),
    }


def shrink_mask(mask: Float[Array, "b H W c"], size: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Mask (B, H, W, 1) to (B, h, w, 1), bilinear without antialiasing: what the original's mask
    loss compares with.
    """
    return jax.image.resize(mask, (mask.shape[0], *size, mask.shape[3]), "linear", antialias=False)


def _per_item(values: Array, like: Array) -> Array:
    """(B,) → (B, 1, …) so that it broadcasts over `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
