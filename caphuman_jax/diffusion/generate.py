"""The compiled way from conditions to pictures: everything that is constant over the steps is computed once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import guidance, samplers
from caphuman_jax.diffusion.rescale import rescale_guidance
from caphuman_jax.models.capface import gate, scale_control, sum_controls
from caphuman_jax.models.identity import drop_identity


@functools.partial(jax.jit, static_argnames=("cfg", "graphs", "branches", "hard_gate", "size"))
def generate(params, conditions, keys, settings, plan, *, cfg: ModelConfig, graphs, size: tuple[int, int],
             branches: tuple[str, ...] = ("identity", "text"), hard_gate: bool = True):
    """Pictures (B, H, W, 3) float32 in [0, 1] and the people's face masks (B, P, H/f, W/f) from conditions.

    Args:
        params: {name: parameters} of text, identity, capface, unet, vae and the ControlNets that are used.
        conditions: tokens and empty_tokens (B, 77) int32, the prompt and what stands for no prompt; of P people: hints
            (B, P, H, W, 9), image_tokens (B, P, K, N, W) and recognition (B, P, K, R), K photos of each; controls: {ControlNet:
            picture (B, H, W, 3) in [0, 1]}.
        keys: (B,) random keys, one a picture (`samplers.picture_keys`).
        settings: float32 scalars: strength (of CapFace), identity_until (identity tokens are kept where the timestep is at most
            this; 0: always), weights {branch: weight} of `guidance.branch_weights`, controls {ControlNet: strength}, and rescale
            (see `rescale.rescale_guidance`; absent: none).
        plan: of `samplers.plan`: the sampler and its steps.
        graphs: tuple of (name, graphdef), the static halves of the networks. branches: names of the predictions that guidance needs.
        size: (H, W) in pixels, multiples of the autoencoder's downsampling times the UNet's.
    """
    graph = dict(graphs)
    run = lambda name: nnx.merge(graph[name], params[name])
    batch, people = conditions["hints"].shape[:2]
    text_encoder, unet, vae = run("text"), run("unet"), run("vae")
    texts = {"text": text_encoder(conditions["tokens"])[0]} if "text" in branches else {}
    texts["empty"] = text_encoder(conditions["empty_tokens"])[0]
    side_of = lambda branch: "text" if branch == "text" else "empty"

    face_control, mask = _face_control(run("capface"), run("identity"), conditions, settings, hard_gate)
    picture_control = _picture_control({name: run(f"controlnet_{name}") for name in conditions["controls"]}, conditions["controls"], settings["controls"])

    def controls(latents, timestep, _):
        t = _spread(timestep, batch)
        faces = {"identity": face_control(latents, t, True)} if {"identity", "text"} & set(branches) else {}
        if "head" in branches:
            faces["head"] = face_control(latents, t, False)
        sides = {side: picture_control(latents, t, texts[side]) for side in {side_of(branch) for branch in branches if branch != "none"}}
        residuals = {}
        for branch in branches:
            if branch != "none":
                parts = [faces["head" if branch == "head" else "identity"], *sides[side_of(branch)]]
                residuals[branch] = sum_controls(parts)
        if "none" in branches:
            like = next(iter(residuals.values()), None)
            residuals["none"] = jax.tree.map(jnp.zeros_like, like if like is not None else face_control(latents, t, True))
        return residuals

    def denoiser(latents, timestep, text, residuals, _):
        return unet(latents, _spread(timestep, latents.shape[0]), text, residuals)

    rescale = None
    if "rescale" in settings:
        rescale = lambda total, with_text: rescale_guidance(total, with_text, settings["rescale"])
    weighted = [(branch, settings["weights"][branch], texts[side_of(branch)]) for branch in branches]
    denoise = guidance.guided(denoiser, controls, weighted, rescale)
    factor = cfg.vae.downsampling
    noise = samplers.initial_noise(keys, (size[0] // factor, size[1] // factor, cfg.unet.in_channels))
    latents = samplers.sample(denoise, noise, plan, prediction=cfg.diffusion.prediction, keys=keys)
    pictures = vae.decode(latents / cfg.vae.scale)
    return jnp.clip(pictures / 2 + 0.5, 0.0, 1.0), mask.reshape(batch, people, *mask.shape[1:3])


def _face_control(capface, projector, conditions, settings, hard_gate):
    """control(latents, timesteps, with identity) → CapFace's residuals, gated, of all people together; and the masks (B·P, h, w, 1)."""
    batch, people, photos = conditions["recognition"].shape[:3]
    flat = lambda x, axes: x.reshape(-1, *x.shape[axes:])
    tokens = projector(flat(conditions["image_tokens"], 3), flat(conditions["recognition"], 3))
    tokens = tokens.reshape(batch * people, photos * tokens.shape[1], tokens.shape[2])
    features = capface.encode_hints(flat(conditions["hints"], 2))
    mask = capface.mask(features)

    def control(latents, timesteps, identified):
        latents, timesteps = jnp.repeat(latents, people, axis=0), jnp.repeat(timesteps, people)
        kept = drop_identity(tokens, timesteps, settings["identity_until"]) if identified else jnp.zeros_like(tokens)
        residuals = gate(capface(latents, timesteps, kept, features), mask, hard=hard_gate)
        together = tuple(x.reshape(batch, people, *x.shape[1:]).sum(axis=1) for x in residuals)
        return scale_control(together, settings["strength"])

    return control, mask


def _picture_control(networks, pictures, strengths):
    """control(latents, timesteps, text) → a list of the ControlNets' residuals, each at its strength."""
    features = {name: network.encode_hints(pictures[name]) for name, network in networks.items()}

    def control(latents, timesteps, text):
        return [scale_control(network(latents, timesteps, text, features[name]), strengths[name]) for name, network in networks.items()]

    return control


def _spread(timestep, count):
    return jnp.broadcast_to(timestep.astype(jnp.float32), (count,))
