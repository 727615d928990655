"""Trains the small autoencoder: differences of pixels and of edges, and two helpers that are off by
default.

The portraits at hand are soft, so plain differences already give about 33 dB and sharp enough
pictures. The shipped recognizer's feature maps may stand in for a perceptual network on the face
(at a cost: docs/performance.md), and a patch discriminator (Isola et al. 2017; hinge loss, given a
fixed share of the gradient at the picture) may sharpen cloth and hair (it made the loss jump when
it set in)."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from caphuman_jax.models.vae import VAE
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import HostRngs
from caphuman_jax.runtime import sharding
from caphuman_jax.training.onnx_to_jax import load_onnx
from caphuman_jax.training.optimizer import average, update
from data_pipeline.loading import augment


@dataclasses.dataclass(frozen=True)
class AutoencoderTraining:
    """Everything that decides a run. Weights of the losses are relative to the mean absolute
    difference.
    """

    steps: int = 6000
    batch: int = 64
    learning_rate: float = 4e-4
    warmup: int = 200
    size: int = 256
    edge_weight: float = 1.0
    feature_weight: float = 0.0
    kl_weight: float = 1e-4
    adversarial_weight: float = 0.0
    adversarial_start: int = 2000
    adversarial_ramp: int = 1000
    latent_noise: float = 0.1
    ema: float = 0.999
    seed: int = 0


class PatchDiscriminator(nnx.Module):
    """Judges overlapping 46-pixel patches: (B, H, W, 3) in [-1, 1] -> (B, H/8, W/8, 1) logits."""

    def __init__(self, widths=(64, 128, 256), *, dtype=jnp.float32, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            [
                conv(a, b, (4, 4), strides=2, padding="SAME")
                for a, b in zip((3, *widths[:-1]), widths)
            ]
        )
        self.norms = nnx.List([nnx.GroupNorm(w, num_groups=16, rngs=rngs) for w in widths[1:]])
        self.out = conv(widths[-1], 1, (3, 3), padding="SAME")

    def __call__(self, images):
        x = images
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i:
                x = self.norms[i - 1](x.astype(jnp.float32)).astype(x.dtype)
            x = jax.nn.leaky_relu(x, 0.2)
        return self.out(x).astype(jnp.float32)


def edges(images):
    """Differences of neighbors along both axes, a cheap measure of sharpness."""
    return images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]


def reconstruction_loss(images, decoded, valid, edge_weight):
    """Mean absolute difference plus that of the edges, inside the photo only."""
    area = jnp.mean(valid) + 1e-6
    loss = jnp.mean(jnp.abs(images - decoded) * valid) / area
    for axis, (a, b) in enumerate(zip(edges(images), edges(decoded))):
        v = valid[:, 1:] if axis == 0 else valid[:, :, 1:]
        loss += edge_weight * jnp.mean(jnp.abs(a - b) * v) / area
    return loss


def feature_loss(features, images, decoded):
    """Mean absolute difference of feature maps, each scaled to unit mean magnitude.
    `features(images) -> list`.
    """
    total = jnp.float32(0)
    for a, b in zip(features(images), features(decoded)):
        a, b = jax.lax.stop_gradient(a.astype(jnp.float32)), b.astype(jnp.float32)
        total += jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(a)) + 1e-6)
    return total


def make_step(
    vae_def, disc_def, optimizer, disc_optimizer, cfg: AutoencoderTraining, features=None, mesh=None
):
    """One step: (state, images uint8 (N, S, S, 3), valid (N, 4), step) -> (state, metrics). Random
    from (seed, step).

    `state` holds vae, disc, ema, opt and disc_opt. `features(images) -> list of maps` may be None;
    the batch is split over the mesh."""

    def batch_of(data, rectangles, key):
        k = jax.random.split(key, 2)
        index = jax.random.randint(k[0], (cfg.batch,), 0, data.shape[0])
        change = augment.AugmentConfig(scale=1.3, shift=0.12, roll_degrees=8.0)
        return sharding.over_batch(mesh, assemble)(
            (data, rectangles), (index, augment.sample_transforms(k[1], cfg.batch, change))
        )

    def assemble(shared, split):
        (data, rectangles), (index, change) = shared, split
        coordinates = augment.source_coordinates(change, data.shape[1], cfg.size)
        images = augment.warp(data[index], coordinates) / 127.5 - 1.0
        return images, augment.valid_area(coordinates, rectangles[index])

    def forward(params, images, key):
        vae = nnx.merge(vae_def, params)
        mean, logvar = vae.encode(images)
        mean, logvar = mean.astype(jnp.float32), jnp.clip(logvar.astype(jnp.float32), -30.0, 20.0)
        spread = jax.lax.stop_gradient(jnp.std(mean)) * cfg.latent_noise
        latents = mean + (jnp.exp(0.5 * logvar) + spread) * jax.random.normal(key, mean.shape)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
        return vae.decode(latents).astype(jnp.float32), kl, jnp.std(mean)

    def picture_loss(decoded, images, valid):
        loss = reconstruction_loss(images, decoded, valid, cfg.edge_weight)
        if features is not None:
            loss += cfg.feature_weight * feature_loss(features, images, decoded)
        return loss

    def fooled(decoded, disc):
        return -jnp.mean(nnx.merge(disc_def, disc)(decoded))

    def discriminator_loss(disc, images, decoded):
        model = nnx.merge(disc_def, disc)
        real, fake = model(images), model(decoded)
        return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))

    def step_fn(state, data, rectangles, step):
        key = jax.random.fold_in(jax.random.key(cfg.seed), step)
        k = jax.random.split(key, 2)
        images, valid = sharding.constrain_batch(mesh)(batch_of(data, rectangles, k[0]))
        (decoded, kl, spread), backward = jax.vjp(lambda p: forward(p, images, k[1]), state["vae"])
        loss, towards = jax.value_and_grad(picture_loss)(decoded, images, valid)
        disc, disc_opt, judged = state["disc"], state["disc_opt"], {}
        if cfg.adversarial_weight > 0:
            fooling = jax.grad(fooled)(decoded * valid, disc) * valid
            # A fixed share of the gradient at the picture, whatever its own scale, and not all at
            # once.
            share = cfg.adversarial_weight * jnp.clip(
                (step - cfg.adversarial_start) / cfg.adversarial_ramp, 0.0, 1.0
            )
            towards += (
                share * jnp.sqrt(jnp.sum(towards**2) / (jnp.sum(fooling**2) + 1e-20)) * fooling
            )
            judged["disc"], d_grads = jax.value_and_grad(discriminator_loss)(
                disc, images * valid, jax.lax.stop_gradient(decoded * valid)
            )
            disc, disc_opt = update(disc_optimizer, d_grads, disc_opt, disc)
        (grads,) = backward((towards, jnp.float32(cfg.kl_weight), jnp.float32(0)))
        parts = {
            "loss": loss,
            "l1": jnp.mean(jnp.abs(images - decoded) * valid),
            "mse": jnp.mean((images - decoded) ** 2 * valid) / (jnp.mean(valid) + 1e-6),
            "kl": kl,
            "latent_std": spread,
        }
        vae, opt = update(optimizer, grads, state["opt"], state["vae"])
        ema = average(state["ema"], vae, cfg.ema, step)
        parts |= judged
        return {"vae": vae, "disc": disc, "ema": ema, "opt": opt, "disc_opt": disc_opt}, parts

    return step_fn


def recognizer_features():
    """Feature maps of the shipped face recognizer on the middle of a 256-pixel head square: images
    -> list of maps.

    The face there is about as large as the recognizer expects; its early layers serve any texture.
    """
    params, apply = load_onnx(
        importlib.resources.files("caphuman_jax") / "assets" / "face" / "mobilefacenet_192.onnx"
    )
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    prefix = "MobileFaceNet/MobileFaceNet/"
    names = [
        prefix + n
        for n in (
            "SeparableConv2d/add",
            "Conv2d_2_InvResBlock_4/Add",
            "Conv2d_4_InvResBlock_5/Add",
            "Conv2d_6_InvResBlock_1/Add",
        )
    ]

    def features(images):
        size = images.shape[1]
        part = images[:, size // 4 : size - size // 4, size // 4 : size - size // 4]
        part = jax.image.resize(part, (*part.shape[:1], 112, 112, 3), "linear", antialias=False)
        found = apply(params, (part * (127.5 / 128)).astype(jnp.bfloat16), outputs=names)
        return [found[n] for n in names]

    return features


def train(
    cfg: AutoencoderTraining,
    vae_cfg,
    pictures,
    rectangles,
    *,
    mesh=None,
    minutes=None,
    log=print,
    features=None,
):
    """Runs the steps on the mesh (all devices by default); returns the static half, the averaged
    weights and the configuration.

    `minutes` sets the steps from the measured speed.
    """
    vae_def, vae = nnx.split(
        VAE(vae_cfg, ComputeConfig(jnp.bfloat16), rngs=HostRngs(jax.random.key(cfg.seed)))
    )
    disc_def, disc = nnx.split(
        jax.jit(lambda: PatchDiscriminator(dtype=jnp.bfloat16, rngs=nnx.Rngs(cfg.seed + 1)))()
    )
    mesh = sharding.make_mesh() if mesh is None else mesh
    everywhere = sharding.replicated(mesh)
    vae, disc = jax.device_put((vae, disc), everywhere)
    pictures, rectangles = jax.device_put(
        (pictures, np.asarray(rectangles, np.float32)), everywhere
    )

    def build(cfg):
        schedule = optax.warmup_cosine_decay_schedule(
            0.0,
            cfg.learning_rate,
            min(cfg.warmup, cfg.steps // 10),
            cfg.steps,
            cfg.learning_rate * 0.02,
        )
        adam = functools.partial(optax.adamw, weight_decay=0.0)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam(schedule, b1=0.9, b2=0.99))
        disc_optimizer = adam(cfg.learning_rate * 0.5, b1=0.5, b2=0.95)
        step = make_step(vae_def, disc_def, optimizer, disc_optimizer, cfg, features, mesh)
        return optimizer, disc_optimizer, jax.jit(step, donate_argnums=0)

    def begin(optimizer, disc_optimizer):
        copy = functools.partial(jax.tree.map, jnp.copy)
        return {
            "vae": copy(vae),
            "disc": copy(disc),
            "ema": copy(vae),
            "opt": optimizer.init(vae),
            "disc_opt": disc_optimizer.init(disc),
        }

    if minutes is not None:
        optimizer, disc_optimizer, step = build(cfg)
        state, began = begin(optimizer, disc_optimizer), None
        for i in range(25):
            if i == 5:
                jax.block_until_ready(state)
                began = time.perf_counter()
            state, _ = step(state, pictures, rectangles, jnp.int32(i))
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / 20
        steps = int(minutes * 60 / seconds)
        log(f"{seconds * 1e3:.1f} ms a step of {cfg.batch}: {steps} steps in {minutes} minutes")
        cfg = dataclasses.replace(cfg, steps=steps, adversarial_start=int(steps * 0.35))
    optimizer, disc_optimizer, step = build(cfg)
    state = begin(optimizer, disc_optimizer)
    for i in range(cfg.steps):
        state, parts = step(state, pictures, rectangles, jnp.int32(i))
        if i % max(1, cfg.steps // 40) == 0 or i == cfg.steps - 1:
            log(f"{i:6d} " + " ".join(f"{k} {float(v):.4f}" for k, v in parts.items()))
            if not all(jnp.isfinite(v) for v in parts.values()):
                raise FloatingPointError(f"the loss is not a number at step {i}")
    return vae_def, state["ema"], cfg


def center_latents(vae_def, params: dict, cfg, pictures, size: int = 256):
    """Parameters whose latents have mean 0 in every channel, and the configuration with the scale
    that gives them
    deviation 1: the mean is folded into the 1x1 convolutions around the latents, pictures stay what
    they were.

    pictures: (N, S, S, 3) uint8, some hundred, of which the middle `size` pixels are used; params:
    plain nested dicts."""

    @jax.jit
    def encode(params, pictures):
        coordinates = augment.source_coordinates(
            augment.identity_transforms(pictures.shape[0]), pictures.shape[1], size
        )
        return nnx.merge(vae_def, params).encode(augment.warp(pictures, coordinates) / 127.5 - 1.0)[
            0
        ]

    latents = np.concatenate(
        [np.asarray(encode(params, pictures[i : i + 32])) for i in range(0, len(pictures), 32)]
    )
    mean = latents.mean((0, 1, 2))
    channels = cfg.latent_channels
    quant, back = dict(params["quant"]), dict(params["post_quant"])
    quant["bias"] = np.asarray(quant["bias"]) - np.concatenate(
        [mean, np.zeros(channels, np.float32)]
    )
    back["bias"] = np.asarray(back["bias"]) + mean @ np.asarray(back["kernel"]).reshape(
        channels, channels
    )
    scale = float(1 / np.sqrt(np.mean((latents - mean) ** 2)))
    return params | {"quant": quant, "post_quant": back}, dataclasses.replace(
        cfg, scale=round(scale, 6)
    )
