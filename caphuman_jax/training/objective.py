"""CapHuman's training objective, one for every model: predict what was mixed into the latents, and
show in CapFace's mask where the face is. Also the noise of a step, and the same loss on held-out
people.

Gradients go to the networks in `params`. A frozen UNet's encoder sees nothing that is trained, so
nothing of it is kept or differentiated: the gradient passes through its decoder and middle block,
and then through CapFace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Key

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss, schedule
from caphuman_jax.models.capface import gate
from caphuman_jax.models.clip_image import normalize
from caphuman_jax.models.identity_projector import drop_identity
from caphuman_jax.nn.typing import Array
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.training.recipe import Evaluation
from caphuman_jax.training.step import Inputs, Tree

HELD_OUT_STEP = 2**31 - 1
"""Held-out batch i and its noise are sampled as in training step HELD_OUT_STEP - i."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B pictures to train on; fields that are None are not known or not needed.

    What records have stored (moments, text, image_tokens) is used, the rest is computed from photo,
    token_ids and identity_input.

    Attributes:
        hints: (B, H, W, 9) float32.
        region: (B, H, W, 1) float32, 1 in the face.
        recognition: (B, R) float32 unit vectors of the identity.
        photo: (B, H, W, 3) float32 in [-1, 1].
        moments: (B, h, w, 2c), mean and log variance of the photo's latents.
        token_ids: (B, L) int32, the prompt.
        text: (B, L, W), the encoded prompt.
        identity_input: (B, S, S, 3) float32 in [0, 1], the image encoder's input.
        image_tokens: (B, N, W), the image encoder's output.
        area: (B, H, W, 1) float32, 1 where the photo is, 0 where its edge is repeated.
        features: (B, H, W, 1) float32, 1 on eyes, brows and mouth.
        weight: (B,) float32, 0 for rows that only fill up the batch.
        without_text: (B,) bool, pictures that are trained without their prompt.
        without_identity: (B,) bool, pictures that are trained without their identity.
        without_control: (B,) bool, pictures that are trained without CapFace.
        index: (B,) int, the pictures' numbers in the records.
    """

    hints: Array
    region: Array
    recognition: Array
    photo: Array | None = None
    moments: Array | None = None
    token_ids: Array | None = None
    text: Array | None = None
    identity_input: Array | None = None
    image_tokens: Array | None = None
    area: Array | None = None
    features: Array | None = None
    weight: Array | None = None
    without_text: Array | None = None
    without_identity: Array | None = None
    without_control: Array | None = None
    index: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """What is random about B pictures.

    Attributes:
        timestep: (B,) int32.
        noise: (B, h, w, c) float32, unit normal, mixed into the latents.
        latent_noise: (B, h, w, c) float32, unit normal, samples latents from their moments.
        identity_until: (B,) float32, the last timestep with identity tokens (the paper's tau): 0
            for all timesteps, -1 for none.
    """

    timestep: jax.Array
    noise: jax.Array
    latent_noise: jax.Array
    identity_until: jax.Array


class NoiseKeys(NamedTuple):
    """The random keys of a `Noise`, one for each number that is drawn.

    Attributes:
        timestep, noise, latent_noise: of the fields with these names.
        limited: whether identity tokens are kept only from a random timestep down.
        tau: that timestep.
    """

    timestep: Key[Array, ""]
    noise: Key[Array, ""]
    latent_noise: Key[Array, ""]
    limited: Key[Array, ""]
    tau: Key[Array, ""]


def sample_noise(
    keys: NoiseKeys,
    model: ModelConfig,
    identity_dropout_prob: float,
    pictures: tuple[int, ...],
    timestep_power: float | Float[Array, ""] = 1.0,
) -> Noise:
    """The noise of a batch.

    Args:
        keys: decide everything.
        model: gives the latents' shape and the number of timesteps.
        identity_dropout_prob: share of the pictures whose identity tokens are kept only from a
            random timestep down.
        pictures: (B,), or () for one picture without the leading axis: with `jax.vmap` each picture
            has keys of its own.
        timestep_power: timesteps are the number of timesteps times u to this power, u uniform in
            [0, 1): 1 gives all alike, more gives fewer noisy ones.
    """
    timesteps, shape = model.diffusion.num_timesteps, (*pictures, *latent_shape(model))
    if isinstance(timestep_power, int | float) and timestep_power == 1:
        timestep = jax.random.randint(keys.timestep, pictures, 0, timesteps)
    else:
        share = jax.random.uniform(keys.timestep, pictures) ** jnp.float32(timestep_power)
        timestep = jnp.minimum((timesteps * share).astype(jnp.int32), timesteps - 1)
    tau = jax.random.uniform(keys.tau, pictures, minval=1.0, maxval=float(timesteps))
    limited = jax.random.uniform(keys.limited, pictures) < identity_dropout_prob
    return Noise(
        timestep=timestep,
        noise=jax.random.normal(keys.noise, shape),
        latent_noise=jax.random.normal(keys.latent_noise, shape),
        identity_until=jnp.where(limited, tau, 0.0),
    )


def noise_of_pictures(
    keys: Key[Array, " b"], model: ModelConfig, identity_dropout_prob: float
) -> Noise:
    """The noise of pictures with these keys (B,), each from its own key alone."""

    def one(key):
        return sample_noise(
            NoiseKeys(*jax.random.split(key, 5)), model, identity_dropout_prob, pictures=()
        )

    return jax.vmap(one)(keys)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The options of the loss; the defaults are the original's.

    Attributes:
        mask_weight: of the mask's error next to the denoiser's.
        timestep_weight: alphas_cumprod (B,) → weights (B,) of the denoiser's squared error; None:
            all are 1.
        face_weight: how much the denoiser's error counts in the face, as against 1 outside.
        feature_weight: how much it counts on eyes, brows and mouth, where the batch has `features`.
        area_per_picture: weight pictures equally, regardless of their covered area; else weight
            pixels equally.
        lora_scale: alpha / rank of a LoRA that is trained.
    """

    mask_weight: float = 1.0
    timestep_weight: Callable[[Array], Array] | None = None
    face_weight: float = 1.0
    feature_weight: float = 1.0
    area_per_picture: bool = True
    lora_scale: float = 1.0


def make_loss(
    model: ModelConfig,
    graphs: Mapping[str, nnx.GraphDef],
    objective: Objective,
    dtype=jnp.bfloat16,
) -> Callable:
    """(params, frozen, Batch, Noise) → (loss, metrics).

    Args:
        model: the sizes of networks and pictures.
        graphs: of all networks that a batch needs.
        objective: the options.
        dtype: of stored conditions as the networks take them.
    """
    alphas_cumprod = schedule.alphas_cumprod(model.diffusion)
    prediction_type = model.diffusion.prediction_type

    def loss_fn(params: Tree, frozen: Tree, batch: Batch, noise: Noise):
        networks = trainable.joined({k: v for k, v in params.items() if k != "lora"}, frozen)
        if "lora" in params:
            networks["unet"] = lora_layers.added(
                networks["unet"], params["lora"], objective.lora_scale
            )
        network = lambda name: nnx.merge(graphs[name], networks[name])
        latents = jax.lax.stop_gradient(sample_latents(model, network, batch, noise))
        text = encode_text(network, batch, frozen.get("empty"), dtype)
        image_tokens = encode_identity(network, batch, dtype)

        alpha = jnp.asarray(alphas_cumprod)[noise.timestep]
        timesteps = noise.timestep.astype(jnp.float32)
        noisy = loss.add_noise(latents, noise.noise, alpha)
        until = noise.identity_until
        if batch.without_identity is not None:
            until = jnp.where(batch.without_identity, -1.0, until)
        identity = network("identity")(image_tokens, batch.recognition)
        identity = drop_identity(identity, timesteps, until)
        capface = network("capface")
        features = capface.encode_hints(batch.hints)
        mask = capface.mask(features)
        residuals = gate(capface(noisy, timesteps, identity, features), mask)
        if batch.without_control is not None:
            use = jnp.logical_not(batch.without_control)[:, None, None, None]
            residuals = tuple(r * use.astype(r.dtype) for r in residuals)
        output = network("unet")(noisy, timesteps, text, residuals)

        target = loss.prediction_target(latents, noise.noise, alpha, prediction_type)
        region = loss.shrink_mask(batch.region, (latents.shape[1], latents.shape[2]))
        # Multiplying both sides by sqrt(w) weights their squared difference by w.
        if batch.area is not None:
            root = jnp.sqrt(_pixel_weights(objective, batch, region))
            output, target = output * root, target * root
        share = None
        if batch.weight is not None:
            share = batch.weight / jnp.mean(batch.weight)
            root = jnp.sqrt(share)[:, None, None, None]
            output, target, mask, region = (x * root for x in (output, target, mask, region))
        weigh = objective.timestep_weight
        total, parts = loss.capface_loss(
            output,
            target,
            mask,
            region,
            mask_weight=objective.mask_weight,
            weights=weigh(alpha) if weigh else None,
        )
        steps = model.diffusion.num_timesteps
        by_time = loss.by_time(output, target, noise.timestep, steps, share)
        metrics = {**parts, **by_time}
        if batch.weight is None:  # else rows that only fill up would count
            metrics["latent_std"] = jnp.std(latents)
        return total, metrics

    return loss_fn


def held_out_loss(
    loss_fn: Callable,
    inputs: Inputs,
    keys: Callable[[jax.Array], Any],
    batches: Callable[[], Iterable[dict]],
) -> Callable[[Tree, Tree, int], Evaluation]:
    """The evaluation (params, frozen, step) → the loss on held-out people, without gradients, with
    the same noise and timesteps every time.

    Args:
        loss_fn: of `make_loss`.
        inputs: rows → (Batch, Noise), as in the training step.
        keys: step → random keys, as in the training step.
        batches: gives each batch's rows, on the devices, at every evaluation.
    """

    @jax.jit
    def error(params, frozen, rows, number):
        step = HELD_OUT_STEP - number
        batch, noise = inputs(frozen, rows, keys(step), step)
        total, metrics = loss_fn(params, frozen, batch, noise)
        # Batches without weights are whole, and count alike.
        pictures = jnp.float32(1) if batch.weight is None else batch.weight.sum()
        return {"loss": total, **metrics}, pictures

    def evaluate(params, frozen, step) -> Evaluation:
        found = [
            jax.device_get(error(params, frozen, rows, number))
            for number, rows in enumerate(batches())
        ]
        counts = np.asarray([pictures for _, pictures in found])
        mean = lambda name: np.average([m[name] for m, _ in found], axis=0, weights=counts)
        return Evaluation({name: mean(name) for name in found[0][0]} if found else {})

    return evaluate


def _pixel_weights(
    objective: Objective, batch: Batch, region: Float[Array, "b h w 1"]
) -> Float[Array, "b h w 1"]:
    """Weights with mean 1: 0 outside of the photo, more on the face where asked for."""
    assert batch.area is not None, "callers ask first"
    size = region.shape[1], region.shape[2]
    weights = loss.shrink_mask(batch.area, size)
    if batch.features is not None:
        face, features = objective.face_weight, objective.feature_weight
        weights = weights * (
            1 + (face - 1) * region + (features - face) * loss.shrink_mask(batch.features, size)
        )
    axes = (1, 2, 3) if objective.area_per_picture else (0, 1, 2, 3)
    return weights / (jnp.mean(weights, axis=axes, keepdims=True) + 1e-6)


def sample_latents(
    model: ModelConfig, network: Callable, batch: Batch, noise: Noise
) -> Float[Array, "b h w c"]:
    """Latents in float32, scaled, sampled again for each step from their moments."""
    if batch.moments is not None:
        mean, logvar = jnp.split(batch.moments.astype(jnp.float32), 2, axis=-1)
    else:
        mean, logvar = network("vae").encode(batch.photo)
    return (mean + jnp.exp(0.5 * logvar) * noise.latent_noise) * model.vae.scaling_factor


def encode_text(
    network: Callable, batch: Batch, empty: Mapping | None, dtype: Any
) -> Float[Array, "b l w"]:
    """The prompts as the UNet takes them (B, L, W).

    Args:
        network: name → network.
        batch: with `text` or `token_ids`.
        empty: {"ids" (L,), "text" (L, W)} of no prompt, for pictures `without_text`.
        dtype: of stored text.
    """
    without = batch.without_text
    if batch.text is not None:
        text = batch.text.astype(dtype)
        if without is None:
            return text
        assert empty is not None, "without_text comes with what stands in for the text"
        return jnp.where(without[:, None, None], empty["text"].astype(dtype), text)
    ids = batch.token_ids
    assert ids is not None, "a batch has text or token_ids"
    if without is not None:
        assert empty is not None, "without_text comes with what stands in for the text"
        ids = jnp.where(without[:, None], empty["ids"], ids)
    return network("text")(ids)[0]


def encode_identity(network: Callable, batch: Batch, dtype: Any) -> Float[Array, "b n w"]:
    """The image encoder's tokens of the identity photos."""
    if batch.image_tokens is not None:
        return batch.image_tokens.astype(dtype)
    assert batch.identity_input is not None, "a batch has image_tokens or identity_input"
    return network("image_encoder")(normalize(batch.identity_input))[0]


def latent_shape(model: ModelConfig) -> tuple[int, int, int]:
    """(h, w, c) of one picture's latents."""
    side = model.image_size // model.vae.downsampling
    return side, side, model.vae.latent_channels
