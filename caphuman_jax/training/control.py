"""One training step of CapFace and the identity projector on a frozen latent-diffusion UNet, as
CapHuman trains them.

The frozen UNet's encoder sees nothing that is trained, so nothing of it is kept or differentiated:
the gradient goes through the UNet's decoder and middle sum alone, and then through CapFace.
Everything random about a picture is a function of (seed, step, the picture's number in the global
batch), so neither the number of devices nor that of micro-batches changes a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss, schedule
from caphuman_jax.errors import SettingError
from caphuman_jax.models.capface import gate
from caphuman_jax.models.clip_image import normalize
from caphuman_jax.models.identity_projector import drop_identity
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime import sharding
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.training.optimizer import average, update

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ControlTraining:
    """Everything that decides a run; defaults are the original's (AdamW 1e-4, decay 0.01, batch
    128, no average, nothing dropped).

    batch: pictures of a step over all devices, taken in `accumulate` micro-batches one after the
    other. start: "unet" copies the UNet's encoder into CapFace, "base" goes on from the base's own
    CapFace and projector. late_identity: share of the pictures whose identity tokens are kept only
    from a random timestep down. drop_text, drop_identity: shares that the loader drops. min_snr: 0
    for none.
    schedule: of the learning rate after `warmup` steps, "constant" or "cosine" to a hundredth.
    decay: "all" or "matrices" (no norms, no biases). clip: the gradient's global norm, 0 for none.
    ema: decay of the average, 0 for none. unfreeze: see `trainable.rules`.
    lora_rank: 0 for none; lora_alpha: 0 for the rank. dtype: of what is computed. remat, attention:
    see
    `ComputeConfig`."""

    steps: int = 100_000
    batch: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.01
    decay: str = "all"
    b1: float = 0.9
    b2: float = 0.999
    clip: float = 0.0
    ema: float = 0.0
    min_snr: float = 0.0
    mask_weight: float = 1.0
    late_identity: float = 0.0
    drop_text: float = 0.0
    drop_identity: float = 0.0
    start: str = "unet"
    unfreeze: str = ""
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: str = lora_layers.TARGETS
    dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"
    seed: int = 0

    def check(self) -> None:
        """Raises SettingError."""
        for name, known in (
            ("schedule", ("constant", "cosine")),
            ("decay", ("all", "matrices")),
            ("start", ("unet", "base")),
            ("dtype", ("bfloat16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise SettingError(
                    f"training.{name} is {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise SettingError(
                f"training.batch = {self.batch} cannot be divided into training.accumulate = "
                f"{self.accumulate} micro-batches"
            )
        if self.unfreeze and self.lora_rank:
            raise SettingError(
                "training.unfreeze and training.lora_rank both change the UNet; choose one"
            )
        for name in ("late_identity", "drop_text", "drop_identity"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(
                    f"training.{name} is {getattr(self, name)}; it is a share, from 0 to 1"
                )
        try:
            ComputeConfig(attention=self.attention, remat=self.remat)
        except ValueError as error:
            raise SettingError(f"training: {error}") from error

    @property
    def lora_scale(self) -> float:
        """alpha / rank."""
        return (self.lora_alpha or self.lora_rank) / self.lora_rank


def make_optimizer(
    cfg: ControlTraining, multiples: Mapping[str, Any]
) -> optax.GradientTransformation:
    """AdamW; `multiples`: a tree of factors of the learning rate, one for each parameter
    (`trainable.rates`).
    """
    decayed = (
        None if cfg.decay == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    adamw = optax.adamw(
        learning_rate(cfg), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=decayed
    )
    # AdamW's whole change, decay included, is proportional to the learning rate.
    own = optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda u, m: u if m == 1 else u * jnp.float32(m), updates, dict(multiples)
        )
    )
    clip = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    return optax.chain(*clip, adamw, own)


def learning_rate(cfg: ControlTraining) -> optax.Schedule:
    """Step (from 0) → learning rate."""
    if cfg.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0,
            cfg.learning_rate,
            cfg.warmup,
            max(cfg.steps, cfg.warmup + 1),
            cfg.learning_rate * 0.01,
        )
    if cfg.warmup:
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup),
                optax.constant_schedule(cfg.learning_rate),
            ],
            [cfg.warmup],
        )
    return optax.constant_schedule(cfg.learning_rate)


def begin(cfg: ControlTraining, optimizer: optax.GradientTransformation, params: dict) -> dict:
    """The state at step 0 of trained parameters; "ema" is empty where no average is kept."""
    ema = jax.tree.map(jnp.copy, params) if cfg.ema else {}
    return {"params": params, "opt": optimizer.init(params), "ema": ema, "step": jnp.int32(0)}


def make_loss(
    model: ModelConfig, graphs: Mapping[str, nnx.GraphDef], cfg: ControlTraining
) -> Callable:
    """(trained, frozen, batch, draws) → (loss, metrics); `draws` of `draw`, `batch` as `make_step`
    says.
    """
    levels = schedule.alphas_cumprod(model.diffusion)

    def loss_fn(trained, frozen, batch, draws):
        params = trainable.joined({k: v for k, v in trained.items() if k != "lora"}, frozen)
        if "lora" in trained:
            params["unet"] = lora_layers.added(params["unet"], trained["lora"], cfg.lora_scale)
        run = lambda name: nnx.merge(graphs[name], params[name])
        given = jax.lax.stop_gradient(
            conditions(model, graphs, frozen, batch, draws, jnp.dtype(cfg.dtype))
        )
        latents, timesteps = given["latents"], draws["timestep"].astype(jnp.float32)
        alpha = jnp.asarray(levels)[draws["timestep"]]
        noisy = loss.add_noise(latents, draws["noise"], alpha)
        identity = run("identity")(given["image_tokens"], batch["recognition"])
        identity = drop_identity(identity, timesteps, draws["identity_until"])
        if "without_identity" in batch:
            identity = identity * ~batch["without_identity"][:, None, None]
        capface = run("capface")
        features = capface.encode_hints(batch["hints"])
        mask = capface.mask(features)
        residuals = gate(capface(noisy, timesteps, identity, features), mask)
        output = run("unet")(noisy, timesteps, given["text"], residuals)

        target = loss.prediction_target(
            latents, draws["noise"], alpha, model.diffusion.prediction_type
        )
        shrunk = lambda picture: loss.shrink_mask(picture, latents.shape[1:3])
        region = shrunk(batch["region"])
        # Squares count by the square of what both sides are multiplied with: nothing where the
        # photo does not reach, or in rows that fill up.
        if "area" in batch:
            counts = shrunk(batch["area"])
            counts = jnp.sqrt(counts / (jnp.mean(counts, axis=(1, 2, 3), keepdims=True) + 1e-6))
            output, target = output * counts, target * counts
        share = None
        if "weight" in batch:
            share = batch["weight"] / jnp.mean(batch["weight"])
            counts = jnp.sqrt(share)[:, None, None, None]
            output, target, mask, region = (
                output * counts,
                target * counts,
                mask * counts,
                region * counts,
            )
        weights = (
            loss.min_snr_weight(alpha, cfg.min_snr, model.diffusion.prediction_type)
            if cfg.min_snr
            else None
        )
        total, parts = loss.capface_loss(
            output, target, mask, region, mask_weight=cfg.mask_weight, weights=weights
        )
        return total, {
            **parts,
            **loss.by_time(output, target, draws["timestep"], model.diffusion.num_timesteps, share),
        }

    return loss_fn


def draw(
    keys: jax.Array, model: ModelConfig, cfg: ControlTraining, shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """What is random of pictures with these keys (B,) and latents of `shape` (h, w, c), each from
    its own key alone.

    timestep int32, noise and latent_noise unit normal, identity_until: the tau of `drop_identity`,
    0 for always."""

    def one(key):
        time, noise, latent, late, until = jax.random.split(key, 5)
        tau = jax.random.uniform(until, minval=1.0, maxval=float(model.diffusion.num_timesteps))
        return {
            "timestep": jax.random.randint(time, (), 0, model.diffusion.num_timesteps),
            "noise": jax.random.normal(noise, shape),
            "latent_noise": jax.random.normal(latent, shape),
            "identity_until": jnp.where(jax.random.uniform(late) < cfg.late_identity, tau, 0.0),
        }

    return jax.vmap(one)(keys)


def conditions(
    model: ModelConfig,
    graphs: Mapping[str, nnx.GraphDef],
    frozen: Mapping[str, Any],
    batch: Batch,
    draws,
    dtype=jnp.bfloat16,
) -> Batch:
    """What frozen networks make of a batch: latents (B, h, w, c) float32 scaled, text (B, L, W),
    image_tokens (B, N, W).

    Stored moments, text and image tokens are taken as they are, with new latents drawn from the
    moments each time."""
    run = lambda name: nnx.merge(graphs[name], frozen[name])
    if "moments" in batch:
        mean, logvar = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
    else:
        mean, logvar = run("vae").encode(batch["pictures"])
    latents = (mean + jnp.exp(0.5 * logvar) * draws["latent_noise"]) * model.vae.scaling_factor
    without = batch.get("without_text")
    if "text" in batch:
        text = batch["text"].astype(dtype)
        text = (
            text
            if without is None
            else jnp.where(without[:, None, None], frozen["empty"]["text"].astype(dtype), text)
        )
    else:
        ids = batch["token_ids"]
        text = run("text")(
            ids if without is None else jnp.where(without[:, None], frozen["empty"]["ids"], ids)
        )[0]
    if "image_tokens" in batch:
        tokens = batch["image_tokens"].astype(dtype)
    else:
        tokens = run("image_encoder")(normalize(batch["identity_pictures"]))[0]
    return {"latents": latents, "text": text, "image_tokens": tokens}


def make_step(
    model: ModelConfig,
    graphs: Mapping[str, nnx.GraphDef],
    cfg: ControlTraining,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    assemble: Callable[[Any, Batch], Batch] | None = None,
) -> Callable:
    """(state, frozen, batch) → (state, metrics).

    graphs: of the trained networks, the UNet and those that `conditions` needs; they decide dtype,
    attention, rematerialization and platform. frozen: the trees of `trainable.split` and `stored`, and where the batch says
    without_text "empty": {"ids" (L,), "text" (L, W)} of no prompt.
    batch: hints (B, H, W, 9); region (B, H, W, 1), the face's; recognition (B, R); moments (B, h,
    w, 2c) or pictures (B, H, W, 3) in [-1, 1]; text (B, L, W) or token_ids (B, L); image_tokens (B,
    N, W) or identity_pictures (B, S, S, 3) in [0, 1]; if there: area (B, H, W, 1), weight (B,),
    without_text, without_identity (B,) bool. assemble: (frozen.get("data"), what the loader gives)
    → a batch, called for one micro-batch at a time. mesh: over which batches are split."""
    cfg.check()
    gradients = jax.value_and_grad(make_loss(model, graphs, cfg), has_aux=True)
    constrain, rate = sharding.constrain_batch(mesh), learning_rate(cfg)

    def micro_batch(trained, frozen, batch, keys):
        batch = constrain(assemble(frozen.get("data"), batch) if assemble else batch)
        (total, metrics), grads = gradients(
            trained, frozen, batch, constrain(draw(keys, model, cfg, _latent_shape(model)))
        )
        return {"loss": total, **metrics}, grads

    def all_gradients(trained, frozen, batch, keys):
        if cfg.accumulate == 1:
            return micro_batch(trained, frozen, batch, keys)
        # Picture i goes to micro-batch i % accumulate: each device splits its own part, and no
        # picture travels.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, cfg.accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys)
        )

        def add(total, part):
            return jax.tree.map(
                jnp.add, total, micro_batch(trained, frozen, *constrain(part))
            ), None

        shapes = jax.eval_shape(micro_batch, trained, frozen, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (metrics, grads), _ = jax.lax.scan(add, zeros, parts)
        share = jnp.float32(1 / cfg.accumulate)
        return {k: v if v.ndim else v * share for k, v in metrics.items()}, jax.tree.map(
            lambda g: g * share, grads
        )

    def step_fn(state, frozen, batch):
        metrics, grads = all_gradients(state["params"], frozen, batch, _keys(cfg, state["step"]))
        params, opt = update(optimizer, grads, state["opt"], state["params"])
        step = state["step"] + 1
        ema = average(state["ema"], params, cfg.ema, step) if cfg.ema else state["ema"]
        metrics |= {
            "gradient": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(rate(state["step"]), jnp.float32),
        }
        return {"params": params, "opt": opt, "ema": ema, "step": step}, metrics

    return step_fn


def make_evaluation(
    model: ModelConfig,
    graphs: Mapping[str, nnx.GraphDef],
    cfg: ControlTraining,
    *,
    mesh: Mesh | None = None,
    assemble: Callable[[Any, Batch], Batch] | None = None,
) -> Callable:
    """(trained, frozen, batch, number) → {"loss", its parts, "pictures": how many rows count}: no
    gradients, the same noise and timesteps for the same number of the batch every time.
    """
    loss_fn, constrain = make_loss(model, graphs, cfg), sharding.constrain_batch(mesh)

    def evaluate(trained, frozen, batch, number):
        keys = _keys(cfg, 2**31 - 1 - number)
        batch = constrain(assemble(frozen.get("data"), batch) if assemble else batch)
        total, metrics = loss_fn(
            trained, frozen, batch, constrain(draw(keys, model, cfg, _latent_shape(model)))
        )
        pictures = jnp.sum(batch["weight"]) if "weight" in batch else jnp.float32(cfg.batch)
        return {"loss": total, **metrics, "pictures": pictures}

    return evaluate


def _keys(cfg: ControlTraining, step) -> jax.Array:
    """One key for each picture of the global batch of a step."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(cfg.batch))


def _latent_shape(model: ModelConfig) -> tuple[int, int, int]:
    side = model.image_size // model.vae.downsampling
    return side, side, model.vae.latent_channels
