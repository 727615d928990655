"""CapHuman's training as a recipe: CapFace and the identity projector on a frozen base, a model of
Stable Diffusion 1's kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Key

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.training.objective import Batch, Noise, Objective, latent_shape, make_loss
from caphuman_jax.training.optimizer import (
    DECAYED,
    SCHEDULES,
    MovingAverage,
    learning_rate_schedule,
    make_adamw,
)
from caphuman_jax.training.recipe import Evaluation, Recipe, tree_hash
from caphuman_jax.training.state import TrainState, Tree
from caphuman_jax.training.step import gradients_of, make_train_step

HELD_OUT_STEP = 2**31 - 1  # noise of held-out batch i is that of step HELD_OUT_STEP - i


@dataclasses.dataclass(frozen=True)
class CapFaceTraining:
    """Everything that decides a run; the defaults are the original's.

    Attributes:
        steps: of the whole run.
        batch_size: pictures of a step over all devices.
        accumulate: micro-batches that a batch is taken in, one after the other.
        learning_rate: of AdamW, after `warmup_steps` steps.
        lr_schedule: "constant", or "cosine" down to a hundredth.
        weight_decay: of AdamW.
        weight_decay_on: "all" or "matrices" (no norms, no biases).
        b1, b2: decay of AdamW's moments.
        grad_clip_norm: largest global norm of the gradient, 0 for no clipping.
        ema_decay: of the moving average of the parameters, 0 for no average.
        min_snr_gamma: of min-SNR weights (arXiv 2303.09556), 0 for equal weights.
        mask_weight: of the mask's error next to the denoiser's.
        identity_dropout_prob: share of the pictures whose identity tokens are kept only from a
            random timestep down.
        no_text_prob, no_identity_prob: shares of the pictures without prompt, without identity.
        init_from: "unet" copies the UNet's encoder into CapFace, "base" continues from the base's
            own CapFace and projector.
        unfreeze: parts of the UNet that are trained too, see `trainable.rules`.
        lora_rank: of a LoRA of the UNet, 0 for none.
        lora_alpha: of the LoRA, 0 for its rank.
        lora_targets: regular expression of the kernels that the LoRA changes.
        dtype: "bfloat16" or "float32", of what is computed; weights are float32.
        remat, attention: see `ComputeConfig`.
        seed: decides everything random.
    """

    steps: int = 100_000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    weight_decay: float = 0.01
    weight_decay_on: str = "all"
    b1: float = 0.9
    b2: float = 0.999
    grad_clip_norm: float = 0.0
    ema_decay: float = 0.0
    min_snr_gamma: float = 0.0
    mask_weight: float = 1.0
    identity_dropout_prob: float = 0.0
    no_text_prob: float = 0.0
    no_identity_prob: float = 0.0
    init_from: str = "unet"
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
            ("lr_schedule", SCHEDULES),
            ("weight_decay_on", DECAYED),
            ("init_from", ("unet", "base")),
            ("dtype", ("bfloat16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise SettingError(
                    f"training.{name} is {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise SettingError(
                f"training.batch_size = {self.batch_size} cannot be divided into training.accumulate = "  # noqa: E501
                f"{self.accumulate} micro-batches"
            )
        if self.unfreeze and self.lora_rank:
            raise SettingError(
                "training.unfreeze and training.lora_rank both change the UNet; choose one"
            )
        for name in ("identity_dropout_prob", "no_text_prob", "no_identity_prob"):
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


class CapFaceRecipe(Recipe):
    """CapFace and projector, with parts of the UNet or a LoRA of it where asked for."""

    def __init__(
        self,
        model: ModelConfig,
        cfg: CapFaceTraining,
        base: Mapping[str, Any],
        row_shapes: Mapping[str, Any],
        *,
        mesh=None,
        platform: str | None = None,
        empty_text: Any = None,
        assemble: Callable[[Any, dict], Batch] | None = None,
        shared: Mapping[str, Any] | None = None,
        hashes: Mapping[str, str] | None = None,
    ):
        """
        Args:
            model: sizes of networks and pictures.
            cfg: everything that decides the run.
            base: the `networks_needed` of a base, arrays on the host, or shapes alone, of which
                nothing but compiling can be done.
            row_shapes: of a global batch as the loader gives it.
            mesh: devices over which batches are split, None for one device.
            platform: what is compiled for, if not what JAX runs on.
            empty_text: {"ids" (L,)} and, where text is stored, {"text" (L, W)} of no prompt.
            assemble: (shared, rows) → Batch, called for one micro-batch at a time; None where rows
                are the fields of a Batch.
            shared: arrays for `assemble`, frozen as "data".
            hashes: {network: sha256} of the base, computed where they are not known.

        Raises:
            SettingError: for settings that contradict each other.
        """
        cfg.check()
        self.model, self.cfg, self._base = model, cfg, base
        self._assemble, self._mesh = assemble, mesh
        dtype = jnp.dtype(cfg.dtype)
        compute = ComputeConfig(dtype, cfg.attention, cfg.remat, platform, mesh)
        abstract = registry.abstract(model, compute, only={*base, *registry.TRAINABLE})
        self._graphs = {name: graph for name, (graph, _) in abstract.items()}
        leaves = {name: leaves for name, (_, leaves) in abstract.items()}
        shapes, _ = trainable.split(leaves, cfg.unfreeze)
        networks = {name: tree for name, tree in base.items() if name not in registry.TRAINABLE}
        self._unfrozen, frozen = trainable.split(networks, cfg.unfreeze)
        keep = []
        if cfg.lora_rank:
            shapes["lora"] = jax.eval_shape(lambda: _lora_start(leaves["unet"], cfg))
            targets = lora_layers.targets(leaves["unet"], cfg.lora_targets)
            keep = [f"unet.{path}" for path in targets]
        if hashes is None:
            hashes = {} if _is_abstract(base) else {n: tree_hash(base[n]) for n in frozen}
        self.frozen_hashes = {name: hashes[name] for name in frozen if name in hashes}
        self.frozen = trainable.stored(frozen, dtype, keep)
        for name, tree in (("empty", empty_text), ("data", shared)):
            if tree:
                self.frozen[name] = dict(tree)
        self.name = f"{model.name}: {', '.join(shapes)}"
        self.batch_size, self.steps = cfg.batch_size, cfg.steps
        self.settings = {"model": model.to_dict(), "training": dataclasses.asdict(cfg)}
        self.param_shapes = shapes
        self._learning_rate = learning_rate_schedule(
            cfg.lr_schedule, cfg.learning_rate, warmup=cfg.warmup_steps, steps=cfg.steps
        )
        self._optimizer = make_adamw(
            self._learning_rate,
            b1=cfg.b1,
            b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            decay=cfg.weight_decay_on,
            clip=cfg.grad_clip_norm,
            multipliers=trainable.rates(shapes, cfg.learning_rate, cfg.unfreeze),
        )
        self._step = self._make_step(self._graphs, mesh)
        # Counted without what is computed again, on one device.
        plain = registry.abstract(model, ComputeConfig(dtype, "xla"), only=self._graphs)
        plain = self._make_step({name: graph for name, (graph, _) in plain.items()}, None)
        self.flops = flops.count(
            plain, self.abstract_state(), _shapes(self.frozen), dict(row_shapes)
        )

    def init_params(self) -> Tree:
        """CapFace, projector and LoRA factors; the same for the same seed, wherever it runs."""
        return init_params(self.model, self.cfg, self._base) | self._unfrozen

    def init_state(self, params: Tree) -> TrainState:
        averaged = None if self.cfg.ema_decay else ()
        return TrainState.create(params, self._optimizer, averaged)

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def _make_step(self, graphs: Mapping[str, nnx.GraphDef], mesh) -> Callable:
        cfg = self.cfg
        return make_train_step(
            functools.partial(self._inputs, mesh),
            gradients_of(self._loss(graphs)),
            self._optimizer,
            keys=functools.partial(picture_keys, cfg),
            accumulate=cfg.accumulate,
            average=MovingAverage(cfg.ema_decay) if cfg.ema_decay else None,
            learning_rate=self._learning_rate,
            mesh=mesh,
        )

    def _inputs(self, mesh, frozen, rows, keys, step) -> tuple[Batch, Noise]:
        constrain = sharding.constrain_batch(mesh)
        assemble = self._assemble or (lambda shared, rows: Batch(**rows))
        batch = constrain(assemble(frozen.get("data"), rows))
        return batch, constrain(sample_noise(keys, self.model, self.cfg.identity_dropout_prob))

    def _loss(self, graphs: Mapping[str, nnx.GraphDef]) -> Callable:
        cfg, prediction = self.cfg, self.model.diffusion.prediction_type
        objective = Objective(
            mask_weight=cfg.mask_weight,
            timestep_weight=(
                lambda alpha: loss.min_snr_weight(alpha, cfg.min_snr_gamma, prediction)
            )
            if cfg.min_snr_gamma
            else None,
            lora_scale=cfg.lora_scale if cfg.lora_rank else 1.0,
        )
        return make_loss(self.model, graphs, objective, jnp.dtype(cfg.dtype))

    def held_out_error(self, rows: Callable[[], list[dict]]) -> Callable:
        """The evaluation (params, frozen, step) → the loss on held-out records, without gradients,
        with the same noise and timesteps every time.

        Args:
            rows: gives the batches as the loader does; called once, at the first evaluation.
        """
        loss_fn = self._loss(self._graphs)

        @jax.jit
        def error(params, frozen, rows, number):
            keys = picture_keys(self.cfg, HELD_OUT_STEP - number)
            batch, noise = self._inputs(self._mesh, frozen, rows, keys, None)
            total, metrics = loss_fn(params, frozen, batch, noise)
            counted = (
                jnp.float32(self.cfg.batch_size) if batch.weight is None else batch.weight.sum()
            )
            return {"loss": total, **metrics}, counted

        place = lambda rows: rows
        if self._mesh is not None:
            place = functools.partial(sharding.place_batch, mesh=self._mesh)
        batches = functools.cache(rows)

        def evaluate(params, frozen, step) -> Evaluation:
            found = [
                jax.device_get(error(params, frozen, place(each), number))
                for number, each in enumerate(batches())
            ]
            counts = np.asarray([counted for _, counted in found])
            mean = lambda name: np.average([m[name] for m, _ in found], axis=0, weights=counts)
            return Evaluation({name: mean(name) for name in found[0][0]} if found else {})

        return evaluate


def picture_keys(cfg: CapFaceTraining, step) -> Key[Array, " b"]:
    """One key for each picture of the global batch of a step, (B,)."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(cfg.batch_size))


def sample_noise(keys: Key[Array, " b"], model: ModelConfig, identity_dropout_prob: float) -> Noise:
    """The noise of pictures with these keys (B,), each from its own key alone.

    Args:
        keys: of `picture_keys`.
        model: gives the latents' shape and the number of timesteps.
        identity_dropout_prob: share of the pictures whose identity tokens are kept from a random
            timestep down only.
    """
    timesteps, shape = model.diffusion.num_timesteps, latent_shape(model)

    def one(key):
        time, noise, latent, late, until = jax.random.split(key, 5)
        tau = jax.random.uniform(until, minval=1.0, maxval=float(timesteps))
        return Noise(
            timestep=jax.random.randint(time, (), 0, timesteps),
            noise=jax.random.normal(noise, shape),
            latent_noise=jax.random.normal(latent, shape),
            identity_until=jnp.where(jax.random.uniform(late) < identity_dropout_prob, tau, 0.0),
        )

    return jax.vmap(one)(keys)


def networks_needed(cfg: CapFaceTraining, model: ModelConfig, stored: Collection[str]) -> list[str]:
    """The base's networks that training takes, where records have the `stored` of "moments", "text"
    and "image_tokens".
    """
    on_the_fly = {"moments": "vae", "text": "text", "image_tokens": "image_encoder"}
    needed = [
        "unet",
        *(registry.TRAINABLE if cfg.init_from == "base" else ()),
        *(net for name, net in on_the_fly.items() if name not in stored),
    ]
    if "image_encoder" in needed and model.image_encoder is None:
        raise SettingError(
            f"the model {model.name} has no image encoder: records for it need image tokens; "
            f"prepare them with --model"
        )
    return needed


def init_params(model: ModelConfig, cfg: CapFaceTraining, base: Mapping[str, Any]) -> Tree:
    """CapFace, projector and LoRA factors at step 0, on the host; the same for the same seed,
    wherever it runs.
    """
    params = {}
    if cfg.init_from == "base":
        params = {name: base[name] for name in registry.TRAINABLE}
    else:
        with sharding.on_cpu():
            drawn = registry.init(model, jax.random.key(cfg.seed), only=registry.TRAINABLE)
            params = jax.device_get({name: tree for name, (_, tree) in drawn.items()})
        generator = np.random.default_rng([cfg.seed, 1])
        params = {name: _pytorch_init(tree, generator) for name, tree in params.items()}
        params["capface"] = {
            **params["capface"],
            "encoder": jax.tree.map(np.copy, base["unet"]["encoder"]),
        }
    if cfg.lora_rank:
        params["lora"] = _lora_start(base["unet"], cfg)
    return params


def _pytorch_init(tree: dict, generator: np.random.Generator) -> dict:
    """Layers as PyTorch's begin, uniform within ± 1 / sqrt(inputs), biases too; those that begin at
    zero stay so.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep=".")
    for path in sorted(path for path in flat if path.endswith(".kernel")):
        if path.startswith("encoder.") or not flat[path].any():
            continue  # copied from the UNet afterwards, or zero
        bound = np.float32(np.prod(flat[path].shape[:-1]) ** -0.5)
        for name in (path, path.removesuffix("kernel") + "bias"):
            flat[name] = generator.uniform(-bound, bound, flat[name].shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep=".")


def _lora_start(unet: Mapping[str, Any], cfg: CapFaceTraining) -> dict:
    return lora_layers.start(
        unet, cfg.lora_rank, cfg.lora_targets, np.random.default_rng([cfg.seed, 2])
    )


def stored_batch(model: ModelConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of which nothing has to be computed on the fly."""
    side, latent = model.image_size, model.image_size // model.vae.downsampling
    encoder = model.image_encoder
    tokens = (encoder.image_size // encoder.patch) ** 2 + 1 if encoder else 49
    array = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype)
    return {
        "hints": array((side, side, model.capface.hint_channels), jnp.float32),
        "region": array((side, side, 1), jnp.float32),
        "moments": array((latent, latent, 2 * model.vae.latent_channels), jnp.float16),
        "text": array((model.text.length, model.unet.cross_attention_dim), jnp.float16),
        "image_tokens": array((tokens, model.identity.image_width), jnp.float16),
        "recognition": array((model.identity.recognition_width,), jnp.float32),
        "without_text": array((), bool),
        "without_identity": array((), bool),
    }


def _is_abstract(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
