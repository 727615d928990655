"""Trains the small autoencoder: differences of pixels and of edges, and two helpers that are off by
default.

The portraits at hand are soft, so plain differences already give about 33 dB and sharp enough
pictures. The shipped recognizer's feature maps may stand in for a perceptual network on the face
(at a cost: docs/notes/performance.md), and a patch discriminator (Isola et al. 2017; hinge loss,
given a fixed share of the gradient at the picture) may sharpen cloth and hair (it made the loss
jump when it set in).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from caphuman_jax.config import ModelConfig, VAEConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.face.recognition import MOBILEFACENET_SIZE
from caphuman_jax.models import registry
from caphuman_jax.models.vae import VAE
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import AbstractRngs, HostRngs
from caphuman_jax.runtime import sharding
from caphuman_jax.training.onnx_to_jax import load_onnx
from caphuman_jax.training.optimizer import (
    learning_rate_schedule,
    make_adamw,
    per_network,
)
from caphuman_jax.training.recipe import Recipe, Stage
from caphuman_jax.training.run_config import from_config
from caphuman_jax.training.step import MovingAverage, TrainState, Tree, make_train_step
from caphuman_jax.weights import model_card
from caphuman_jax.weights.model_folder import save_model
from data_pipeline.loading import augment

CHANGES = augment.AugmentConfig(scale=1.3, shift=0.12, roll_degrees=8.0)
CENTERED = 512  # photos that the latents are centered on


@dataclasses.dataclass(frozen=True)
class AutoencoderTraining:
    """Everything that decides a run. Weights of the losses are relative to the mean absolute
    difference of pixels.

    Attributes:
        steps: of the whole run.
        batch_size: pictures of a step over all devices.
        learning_rate: of AdamW, after `warmup_steps` steps; then cosine decay to a fiftieth.
        size: height and width of the pictures.
        edge_weight: of the differences of neighboring pixels.
        feature_weight: of `feature_loss` with the recognizer's feature maps, 0 for none.
        kl_weight: of the latents' divergence from unit normal ones.
        adversarial_weight: share of the gradient at the picture that the discriminator gets, 0 for
            no discriminator; it sets in at `adversarial_start_step`, over `adversarial_ramp_steps`.
        latent_noise: noise added to the latents, in their standard deviations.
        ema_decay: of the moving average of the parameters.
        seed: decides everything random.
        dtype: "bfloat16" or "float32", of what is computed; weights are float32.
    """

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 4e-4
    warmup_steps: int = 200
    size: int = 256
    edge_weight: float = 1.0
    feature_weight: float = 0.0
    kl_weight: float = 1e-4
    adversarial_weight: float = 0.0
    adversarial_start_step: int = 2000
    adversarial_ramp_steps: int = 1000
    latent_noise: float = 0.1
    ema_decay: float = 0.999
    seed: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype not in ("bfloat16", "float32"):
            raise SettingError(f"autoencoder.dtype is bfloat16 or float32, not {self.dtype!r}")


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


class AutoencoderRecipe(Recipe):
    """The autoencoder, and the discriminator where one is asked for, on photos that rest on the
    devices.
    """

    def __init__(
        self,
        vae_cfg: VAEConfig,
        cfg: AutoencoderTraining,
        photos: np.ndarray,
        covered: np.ndarray,
        *,
        features: Callable | None = None,
        mesh=None,
    ):
        """
        Args:
            vae_cfg: the network's sizes.
            cfg: everything that decides the run.
            photos: (N, S, S, 3) uint8.
            covered: (N, 4), the rectangle of each that is photo, in pixels.
            features: images → list of feature maps, for `feature_loss`.
            mesh: devices over which batches are split, None for one device.
        """
        self.vae_cfg, self.cfg, self._features, self._mesh = vae_cfg, cfg, features, mesh
        abstract: dict[str, nnx.Module] = {
            "vae": nnx.eval_shape(lambda: self._make_vae(AbstractRngs()))
        }
        if cfg.adversarial_weight > 0:
            abstract["discriminator"] = nnx.eval_shape(self._make_discriminator)
        parts = {name: registry.split(network) for name, network in abstract.items()}
        self._graphs = {name: graph for name, (graph, _) in parts.items()}
        self.param_shapes = {name: shapes for name, (_, shapes) in parts.items()}
        self.name = "autoencoder"
        self.batch_size, self.steps = cfg.batch_size, cfg.steps
        self.settings = {
            "model": dataclasses.asdict(vae_cfg),
            "training": dataclasses.asdict(cfg),
            "photos": len(photos),
        }
        self.frozen = {"data": {"photos": photos, "covered": np.asarray(covered, np.float32)}}
        rate = learning_rate_schedule(
            "cosine",
            cfg.learning_rate,
            warmup=min(cfg.warmup_steps, cfg.steps // 10),
            steps=cfg.steps,
            end_ratio=0.02,
        )
        self._optimizer = per_network(
            {
                "vae": make_adamw(rate, b2=0.99, clip=1.0),
                "discriminator": make_adamw(cfg.learning_rate * 0.5, b1=0.5, b2=0.95),
            }
        )
        self._step = make_train_step(
            self._inputs,
            self._gradients,
            self._optimizer,
            keys=lambda step: jax.random.fold_in(jax.random.key(cfg.seed), step),
            average=MovingAverage(cfg.ema_decay, first=0),
        )

    def _make_vae(self, rngs) -> VAE:
        return VAE(self.vae_cfg, ComputeConfig(self.cfg.dtype), rngs=rngs)

    def _make_discriminator(self) -> PatchDiscriminator:
        return PatchDiscriminator(dtype=self.cfg.dtype, rngs=nnx.Rngs(self.cfg.seed + 1))

    def init_params(self) -> Tree:
        with sharding.on_cpu():
            made = {"vae": self._make_vae(HostRngs(jax.random.key(self.cfg.seed)))}
            if "discriminator" in self.param_shapes:
                made["discriminator"] = jax.jit(self._make_discriminator)()
            return jax.device_get({name: registry.split(made[name])[1] for name in made})

    def init_state(self, params: Tree) -> TrainState:
        return TrainState.create(params, self._optimizer, averaged=("vae",))

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def sampled_rows(self, frozen, step):
        key = jax.random.fold_in(jax.random.key(self.cfg.seed), step)
        images, valid, *_ = jax.jit(self._inputs)(frozen, {}, key, step)
        return {"images": images, "valid": valid}

    def _inputs(self, frozen, rows, key, step):
        """(images in [-1, 1], 1 where they are photo, key of the latents' noise, step)."""
        batch_key, noise_key = jax.random.split(key)
        k = jax.random.split(batch_key)
        cfg, data = self.cfg, frozen["data"]
        index = jax.random.randint(k[0], (cfg.batch_size,), 0, data["photos"].shape[0])
        change = augment.sample_transforms(k[1], cfg.batch_size, CHANGES)

        def make_images(data, chosen):
            index, change = chosen
            coordinates = augment.source_coordinates(change, data["photos"].shape[1], cfg.size)
            images = augment.warp(data["photos"][index], coordinates) / 127.5 - 1.0
            return images, augment.valid_area(coordinates, data["covered"][index])

        made = sharding.over_batch(self._mesh, make_images)(data, (index, change))
        return *sharding.constrain_batch(self._mesh)(made), noise_key, step

    def _gradients(self, params, frozen, images, valid, key, step):
        """(metrics, gradients). The discriminator's gradient at the picture is scaled before it
        is passed on to the autoencoder, so this is not the gradient of one sum.
        """
        cfg, vae_graph = self.cfg, self._graphs["vae"]

        def forward(params):
            vae = nnx.merge(vae_graph, params)
            mean, logvar = (x.astype(jnp.float32) for x in vae.encode(images))
            logvar = jnp.clip(logvar, -30.0, 20.0)
            extra = jax.lax.stop_gradient(jnp.std(mean)) * cfg.latent_noise
            latents = mean + (jnp.exp(0.5 * logvar) + extra) * jax.random.normal(key, mean.shape)
            kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
            return vae.decode(latents).astype(jnp.float32), kl, jnp.std(mean)

        def picture_loss(decoded):
            loss = reconstruction_loss(images, decoded, valid, cfg.edge_weight)
            if self._features is not None:
                loss += cfg.feature_weight * feature_loss(self._features, images, decoded)
            return loss

        (decoded, kl, latent_std), backward = jax.vjp(forward, params["vae"])
        loss, at_picture = jax.value_and_grad(picture_loss)(decoded)
        metrics, grads = {"loss": loss}, {}
        if "discriminator" in params:
            judge = lambda params, images: nnx.merge(self._graphs["discriminator"], params)(images)
            fool = lambda decoded: -jnp.mean(judge(params["discriminator"], decoded))
            adversarial = jax.grad(fool)(decoded * valid) * valid
            # A fixed share of the gradient at the picture, whatever its own scale, and not all at
            # once.
            share = cfg.adversarial_weight * jnp.clip(
                (step - cfg.adversarial_start_step) / cfg.adversarial_ramp_steps, 0.0, 1.0
            )
            scale = jnp.sqrt(jnp.sum(at_picture**2) / (jnp.sum(adversarial**2) + 1e-20))
            at_picture += share * scale * adversarial

            def hinge(params):
                real = judge(params, images * valid)
                fake = judge(params, jax.lax.stop_gradient(decoded * valid))
                return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))

            metrics["discriminator"], grads["discriminator"] = jax.value_and_grad(hinge)(
                params["discriminator"]
            )
        (grads["vae"],) = backward((at_picture, jnp.float32(cfg.kl_weight), jnp.float32(0)))
        metrics |= {
            "l1": jnp.mean(jnp.abs(images - decoded) * valid),
            "mse": jnp.mean((images - decoded) ** 2 * valid) / (jnp.mean(valid) + 1e-6),
            "kl": kl,
            "latent_std": latent_std,
        }
        return metrics, grads


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
        part = jax.image.resize(
            part, (*part.shape[:1], *[MOBILEFACENET_SIZE] * 2, 3), "linear", antialias=False
        )
        found = apply(params, (part * (127.5 / 128)).astype(jnp.bfloat16), outputs=names)
        return [found[n] for n in names]

    return features


def stage(config, workdir: Path, records: Callable) -> Stage:
    """The autoencoder of a configuration such as configs/mini.py.

    Args:
        config: its `model`, `autoencoder` and `loop` count.
        workdir: of this stage; the model folder is WORKDIR/model.
        records: () → (records, numbers of those to train on, of those held out).
    """
    model = ModelConfig.from_dict(config.model.to_dict())
    cfg = from_config(AutoencoderTraining, config.autoencoder, "autoencoder")

    def build(mesh, log):
        found, train_index, _ = records()
        photos = found.pictures[train_index]
        covered = found.covered[train_index] * photos.shape[1]
        features = recognizer_features() if cfg.feature_weight > 0 else None
        log(f"autoencoder: {len(photos)} photos to train on")
        recipe = AutoencoderRecipe(model.vae, cfg, photos, covered, features=features, mesh=mesh)
        return recipe, None

    def export(params, folder, metadata) -> None:
        found, train_index, _ = records()
        graph = registry.abstract(model, ComputeConfig(cfg.dtype), only=("vae",))["vae"][0]
        some = found.pictures[train_index[:CENTERED]]
        vae, vae_cfg = center_latents(graph, params["vae"], model.vae, some, cfg.size)
        centered = dataclasses.replace(model, vae=vae_cfg)
        card = lambda part: model_card.write(part, replaced=folder)
        save_model(folder, centered, {"vae": vae}, overwrite=True, metadata=metadata, more=card)

    loop = {**config.loop, "best": ""}
    return Stage("autoencoder", workdir, loop, build, export)


def center_latents(
    vae_def, params: dict, cfg, pictures: UInt8[np.ndarray, "n s s 3"], size: int = 256
):
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
        cfg, scaling_factor=round(scale, 6)
    )
