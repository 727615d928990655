"""The compiled way from conditions to pictures: everything that is constant over the steps is computed once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import guidance, samplers, schedule
from caphuman_jax.models.capface import gate, scale_control
from caphuman_jax.models.identity import drop_identity


@functools.partial(jax.jit, static_argnames=("cfg", "graphs", "steps", "spacing", "eta", "guided", "hard_gate", "size"))
def generate(params, conditions, keys, settings, *, cfg: ModelConfig, graphs, steps: int, size: tuple[int, int],
             spacing: str = "original", eta: float = 0.0, guided: bool = True, hard_gate: bool = True):
    """Pictures (B, H, W, 3) float32 in [0, 1] and face masks (B, H/f, W/f, 1) from conditions.

    Args:
        params: {name: parameters} of text, identity, capface, unet and vae.
        conditions: tokens (B, 77) and empty_tokens (1, 77) int32; hints (B, H, W, 9); image_tokens (B, N, W) and
            recognition (B, R) of the person.
        keys: (B,) random keys, one a picture (`samplers.picture_keys`).
        settings: guidance, strength (of CapFace) and identity_until (identity tokens are kept where the timestep is at
            most this; 0: always), float32 scalars.
        graphs: tuple of (name, graphdef), the static halves of the networks.
        steps, spacing: see `schedule.timesteps`. eta: 0 is DDIM, 1 puts back as much noise as DDPM. guided False: one half only, without classifier-free guidance.
        size: (H, W) in pixels, multiples of the autoencoder's downsampling times the UNet's.
    """
    graph = dict(graphs)
    run = lambda name: nnx.merge(graph[name], params[name])
    batch = conditions["hints"].shape[0]
    text_encoder, capface, unet, vae = run("text"), run("capface"), run("unet"), run("vae")
    text = text_encoder(conditions["tokens"])[0]
    empty = jnp.broadcast_to(text_encoder(conditions["empty_tokens"])[0], text.shape) if guided else None
    identity = run("identity")(conditions["image_tokens"], conditions["recognition"])
    features = capface.encode_hints(conditions["hints"])
    mask = capface.mask(features)
    spread = lambda t, n: jnp.broadcast_to(t.astype(jnp.float32), (n,))

    def control(latents, timestep, _):
        t = spread(timestep, batch)
        residuals = capface(latents, t, drop_identity(identity, t, settings["identity_until"]), features)
        return scale_control(gate(residuals, mask, hard=hard_gate), settings["strength"])

    def denoiser(latents, timestep, text, residuals, _):
        return unet(latents, spread(timestep, latents.shape[0]), text, residuals)

    denoise = guidance.text_guidance(denoiser, control, text, empty, settings["guidance"])
    factor = cfg.vae.downsampling
    noise = samplers.initial_noise(keys, (size[0] // factor, size[1] // factor, cfg.unet.in_channels))
    latents = samplers.sample(denoise, noise, schedule.sampling_steps(cfg.diffusion, steps, spacing), prediction=cfg.diffusion.prediction,
                              eta=eta, keys=keys)
    pictures = vae.decode(latents / cfg.vae.scale)
    return jnp.clip(pictures / 2 + 0.5, 0.0, 1.0), mask
