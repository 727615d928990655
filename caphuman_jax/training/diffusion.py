"""One training step of the denoiser and its control branch on precomputed records.

Everything random — which photos, their small changes, noise, timesteps, what is dropped — is a
function of (seed, step), so a run that is stopped and resumed is the run that was not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss, schedule
from caphuman_jax.head.hints import unpack_hints
from caphuman_jax.models import registry
from caphuman_jax.models.capface import gate, start_from_unet
from caphuman_jax.models.identity_projector import drop_identity
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime import sharding
from caphuman_jax.training.optimizer import average, update
from data_pipeline.loading import augment

TRAINED = ("unet", "capface", "identity", "text")


@dataclasses.dataclass(frozen=True)
class DiffusionTraining:
    """Everything that decides a run; shares are probabilities per picture.

    face_weight and feature_weight: how much more the denoiser's error counts on the face, and on
    eyes, brows and mouth. What guidance compares with — no text, no identity, no control — is
    dropped together more often than apart. replace_background is the share of photos in color
    whose background gets another color, which the caption then names. dtype: of what is computed;
    weights are float32."""

    steps: int = 20000
    batch: int = 1024
    learning_rate: float = 4e-4
    warmup: int = 500
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.9995
    min_snr: float = 5.0
    face_weight: float = 2.0
    feature_weight: float = 3.0
    mask_weight: float = 1.0
    color_share: float = 0.65
    replace_background: float = 0.4
    drop_text: float = 0.12
    drop_identity: float = 0.05
    drop_identity_without_text: float = 0.2
    late_identity: float = 0.1
    drop_control: float = 0.05
    drop_control_without_text: float = 0.3
    lent_identity: float = 0.5
    to_grey: float = 0.08
    seed: int = 0
    dtype: str = "bfloat16"
    augment: augment.AugmentConfig = augment.AugmentConfig()


def draw(data: dict, key, cfg: DiffusionTraining, size: int, mesh=None):
    """A batch from the resident data (`dataset.build`): pictures in [-1, 1], hints, region, area,
    tokens, vectors, ids.

    Photos in color make up `color_share` of it. Hints carry another photo's identity (or a
    mirrored albedo) in `lent_identity` of the cases, and so do the identity tokens where the person
    has several photos."""
    k = jax.random.split(key, 14)
    n = cfg.batch
    color = jax.random.uniform(k[0], (n,)) < cfg.color_share
    pick = lambda key, order: order[jax.random.randint(key, (n,), 0, order.shape[0])]
    choice = lambda key, count: jax.random.randint(key, (n,), 0, count)
    index = jnp.where(color, pick(k[1], data["colour_index"]), pick(k[2], data["grey_index"]))
    grey = (jax.random.uniform(k[5], (n,)) < cfg.to_grey) | data["grey"][index]
    chosen = {
        "index": index,
        "change": augment.sample_transforms(k[3], n, cfg.augment),
        "variant": (jax.random.uniform(k[4], (n,)) < cfg.lent_identity).astype(jnp.int32),
        "grey": grey,
        "replaced": (jax.random.uniform(k[10], (n,)) < cfg.replace_background) & ~grey,
        "word": choice(k[11], data["background_ids"].shape[0]),
        "wording": choice(k[12], data["background_ids"].shape[1]),
        "shade": choice(k[13], data["background_rgb"].shape[1]),
        "slope": jax.random.uniform(jax.random.fold_in(k[13], 1), (n, 3), minval=-1.0),
        "lender": data["partner"][index, choice(k[6], data["partner"].shape[1])],
        "face": choice(k[7], data["tokens"].shape[1]),
        "caption": choice(k[8], data["captions"].shape[1]),
        "dropped": jax.random.uniform(k[9], (n,)) < cfg.drop_text,
    }
    return sharding.over_batch(mesh, lambda data, chosen: _assemble(data, chosen, size))(
        data, chosen
    )


def _assemble(data: dict, chosen: dict, size: int) -> dict:
    """The chosen photos with their changes made: every array that a step needs of them."""
    index, change, grey = chosen["index"], chosen["change"], chosen["grey"]
    coordinates = augment.source_coordinates(change, data["pictures"].shape[1], size)
    masks = [data[name][index][..., None] for name in ("region", "features", "person")]
    stacked = jnp.concatenate(
        [data["pictures"][index], data["hints"][index, chosen["variant"]], *masks], axis=-1
    )
    warped = augment.warp(stacked, coordinates) / 255.0
    pictures, hints, region, features, person = jnp.split(warped, (3, 12, 13, 14), axis=-1)
    plain = augment.plain_background(
        data["background_rgb"][chosen["word"], chosen["shade"]], chosen["slope"], size
    )
    behind = (1 - person) * chosen["replaced"][:, None, None, None]
    pictures = (pictures * (1 - behind) + plain * behind) * 2 - 1
    luma = jnp.sum(
        pictures * jnp.asarray([0.299, 0.587, 0.114], jnp.float32), axis=-1, keepdims=True
    )
    pictures = jnp.where(grey[:, None, None, None], luma, pictures)
    hints = unpack_hints(hints, lambda normals: augment.turn_normals(normals, change))
    replaced = chosen["replaced"][:, None]
    caption = data["captions"][
        index, chosen["caption"], jnp.where(replaced[:, 0], 2, grey.astype(jnp.int32))
    ]
    caption = jnp.where(
        replaced,
        join_captions(caption, data["background_ids"][chosen["word"], chosen["wording"]]),
        caption,
    )
    return {
        "pictures": pictures,
        "hints": hints,
        "region": region,
        "features": features,
        "area": augment.valid_area(coordinates, data["covered"][index]),
        "image_tokens": data["tokens"][chosen["lender"], chosen["face"]].astype(jnp.float32),
        "recognition": data["vectors"][chosen["lender"], chosen["face"]],
        "token_ids": jnp.where(chosen["dropped"][:, None], data["empty"], caption),
        "without_text": chosen["dropped"],
    }


def join_captions(first, second):
    """Token ids (B, L) of captions with further words: `second` (B, K) holds the words' ids and
    then the end token, several times.

    The end token is the highest id and also fills the rest of `first`; what does not fit is cut
    off, the end token never."""
    length, more = first.shape[1], second.shape[1]
    place = jnp.arange(length)[None] - jnp.argmax(first, axis=1)[:, None]
    words = jnp.take_along_axis(second, jnp.clip(place, 0, more - 1), axis=1)
    return jnp.where(place < 0, first, words).at[:, -1].set(first.max(axis=1))


def noise_weight(alpha, cfg: DiffusionTraining, prediction: str):
    """Weights (B,) of the squared error at signal levels alpha (B,).

    For "epsilon" those of min-SNR. They say nothing of where only noise is left, which is where a
    prompt decides most: for "v", x0's error counts min(SNR + 1, min_snr), so 1 at the noisy end
    instead of 0."""
    if prediction == "epsilon":
        return loss.min_snr_weight(alpha, cfg.min_snr, prediction)
    return jnp.minimum(1.0, cfg.min_snr * (1 - alpha))


def make_optimizer(cfg: DiffusionTraining) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay; gradients clipped by their global norm. Norms and biases
    are not decayed.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        cfg.learning_rate,
        min(cfg.warmup, cfg.steps // 10),
        cfg.steps,
        cfg.learning_rate * 0.01,
    )
    decayed = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=cfg.weight_decay, mask=decayed),
    )


def init_params(model: ModelConfig, cfg: DiffusionTraining) -> tuple[dict, dict]:
    """(graphs by name, freshly initialized parameters of the trained networks)."""
    networks = registry.init(model, jax.random.key(cfg.seed), ComputeConfig(cfg.dtype))
    params = {name: networks[name][1] for name in TRAINED}
    # Unit recognition vectors have small entries: bring their token to the scale of the others.
    width = model.identity.recognition_width
    params["identity"]["recognition"]["kernel"] = params["identity"]["recognition"][
        "kernel"
    ] * jnp.sqrt(jnp.float32(width))
    params["capface"] = start_from_unet(params["capface"], params["unet"])
    return {name: graph for name, (graph, _) in networks.items()}, params


def begin(cfg: DiffusionTraining, params: dict) -> dict:
    """The state at step 0."""
    return {
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "opt": make_optimizer(cfg).init(params),
        "step": jnp.int32(0),
    }


def init_state(model: ModelConfig, cfg: DiffusionTraining) -> tuple[dict, dict]:
    """(graphs by name, state): freshly initialized parameters of the trained networks, their
    average, optimizer state.
    """
    graphs, params = init_params(model, cfg)
    return graphs, begin(cfg, params)


def make_loss(model: ModelConfig, graphs: dict, cfg: DiffusionTraining):
    """(params, batch of `draw`, scaled latents, key) -> (loss, its parts)."""
    levels = schedule.alphas_cumprod(model.diffusion)

    def loss_fn(params, batch, latents, key):
        k = jax.random.split(key, 6)
        n, (height, width) = latents.shape[0], latents.shape[1:3]
        run = lambda name: nnx.merge(graphs[name], params[name])
        t = jax.random.randint(k[0], (n,), 0, model.diffusion.num_timesteps)
        alpha = jnp.asarray(levels)[t]
        noise = jax.random.normal(k[1], latents.shape)
        noisy, times = loss.add_noise(latents, noise, alpha), t.astype(jnp.float32)
        text = run("text")(batch["token_ids"])[0]
        identity = run("identity")(batch["image_tokens"], batch["recognition"])
        # Identity until a random time, or never, for some; always for most (tau 0).
        late = jax.random.uniform(k[2], (n,)) < cfg.late_identity
        tau = jnp.where(
            late,
            jax.random.uniform(k[3], (n,), minval=1.0, maxval=float(model.diffusion.num_timesteps)),
            0.0,
        )
        rate = lambda with_text, without: jnp.where(batch["without_text"], without, with_text)
        tau = jnp.where(
            jax.random.uniform(k[4], (n,))
            < rate(cfg.drop_identity, cfg.drop_identity_without_text),
            -1.0,
            tau,
        )
        identity = drop_identity(identity, times, tau)
        capface = run("capface")
        features = capface.encode_hints(batch["hints"])
        mask = capface.mask(features)
        used = (
            jax.random.uniform(k[5], (n,)) >= rate(cfg.drop_control, cfg.drop_control_without_text)
        ).astype(jnp.float32)
        residuals = gate(capface(noisy, times, identity, features), mask)
        residuals = tuple(r * used[:, None, None, None].astype(r.dtype) for r in residuals)
        output = run("unet")(noisy, times, text, residuals)
        shrunk = lambda mask: loss.shrink_mask(mask, (height, width))
        region = shrunk(batch["region"])
        # Squared errors count by the square of what both sides are multiplied with.
        counts = shrunk(batch["area"]) * (
            1
            + (cfg.face_weight - 1) * region
            + (cfg.feature_weight - cfg.face_weight) * shrunk(batch["features"])
        )
        counts = jnp.sqrt(counts / (jnp.mean(counts) + 1e-6))
        target = loss.prediction_target(latents, noise, alpha, model.diffusion.prediction_type)
        total, parts = loss.capface_loss(
            output * counts,
            target * counts,
            mask,
            region,
            mask_weight=cfg.mask_weight,
            weights=noise_weight(alpha, cfg, model.diffusion.prediction_type),
        )
        return total, {
            **parts,
            **loss.by_time(output * counts, target * counts, t, model.diffusion.num_timesteps),
        }

    return loss_fn


def step_key(cfg: DiffusionTraining, step):
    """What everything random in a step comes from."""
    return jax.random.fold_in(jax.random.key(cfg.seed), step)


def latents_of(model: ModelConfig, graphs: dict, vae: dict, pictures, key):
    """Scaled latents (B, h, w, C), drawn from the autoencoder's moments of pictures (B, H, W, 3) in
    [-1, 1].
    """
    mean, logvar = nnx.merge(graphs["vae"], vae).encode(pictures)
    return (
        mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    ) * model.vae.scaling_factor


def make_step(model: ModelConfig, graphs: dict, cfg: DiffusionTraining, mesh=None):
    """(state, frozen {"vae"}, data) -> (state, metrics), the batch split over the mesh."""
    optimizer = make_optimizer(cfg)
    loss_fn = make_loss(model, graphs, cfg)

    def step_fn(state, frozen, data):
        k = jax.random.split(step_key(cfg, state["step"]), 3)
        batch = sharding.constrain_batch(mesh)(draw(data, k[0], cfg, model.image_size, mesh))
        latents = jax.lax.stop_gradient(
            latents_of(model, graphs, frozen["vae"], batch["pictures"], k[1])
        )
        (total, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state["params"], batch, latents, k[2]
        )
        params, opt = update(optimizer, grads, state["opt"], state["params"])
        step = state["step"] + 1
        ema = average(state["ema"], params, cfg.ema, step)
        metrics = {
            "loss": total,
            **parts,
            "gradient": optax.tree.norm(grads),
            "latent_std": jnp.std(latents),
        }
        return {"params": params, "ema": ema, "opt": opt, "step": step}, metrics

    return step_fn
