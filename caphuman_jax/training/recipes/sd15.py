"""CapHuman's training as the original does it: CapFace and the identity projector on a frozen base,
a model of Stable Diffusion 1's kind; parts of the UNet or a LoRA of it where asked for.

    stages → build: base, records and evaluators of a configuration such as configs/sd15.py
    CapFaceRecipe: networks, inputs of the loss, the step
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Key

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss
from caphuman_jax.errors import SettingError
from caphuman_jax.io.metadata import checksums
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import base_model, lora_layers, trainable
from caphuman_jax.training.batches import RecordBatches, stored_batch
from caphuman_jax.training.compiled_step import shapes_of
from caphuman_jax.training.objective import (
    Batch,
    Noise,
    Objective,
    held_out_loss,
    make_loss,
    noise_of_pictures,
)
from caphuman_jax.training.optimizer import (
    DECAYED,
    SCHEDULES,
    learning_rate_schedule,
    make_adamw,
)
from caphuman_jax.training.previews import Previews
from caphuman_jax.training.recipe import Recipe, Stage, make_evaluators, tree_hash
from caphuman_jax.training.run_config import from_config
from caphuman_jax.training.step import (
    MovingAverage,
    TrainState,
    Tree,
    gradients_of,
    make_train_step,
)
from caphuman_jax.weights import model_folder
from data_pipeline.records.manifest import records_hash


def stages(config, workdir: Path) -> list[Stage]:
    """The one stage of a configuration such as configs/sd15.py."""
    return [
        Stage(
            name="CapFace",
            workdir=workdir,
            loop=config.loop,
            build=functools.partial(build, config),
            export=functools.partial(export, config, workdir),
        )
    ]


def build(config, mesh, log) -> tuple[CapFaceRecipe, RecordBatches]:
    """(recipe, batches of records). Raises CapHumanError."""
    cfg = from_config(CapFaceTraining, config.training, "training")
    where = base_model.find(config.base)
    model = model_folder.read_config(where)
    hashes = checksums(where)
    source = RecordBatches(config, model, cfg, mesh, hashes)
    needed = base_model.networks_needed(model, source.stored, cfg.init_from == "base")
    log(f"base {where}: {', '.join(needed)}; {source.summary}")
    shapes = {name: leaves for name, (_, leaves) in registry.abstract(model, only=needed).items()}
    recipe = CapFaceRecipe(
        model,
        cfg,
        model_folder.load_params(where, shapes),
        source.batch_shapes,
        mesh=mesh,
        empty_text=base_model.empty_text(where, model, "text" in source.stored),
        make_batch=source.make_batch,
        shared=source.shared,
        hashes=hashes,
    )
    # The folder of the records may move; what is in it may not change while a run is resumed.
    recipe.settings["records"] = records_hash(source.records.manifest)
    held_out = source.records.splits.get("test", 0)
    networks = functools.partial(base_model.whole_model, where, model, cfg.lora_scale)
    known = {
        "held_out": lambda pictures: (
            recipe.held_out_loss(lambda: source.held_out(pictures)) if held_out else None
        ),
        "previews": lambda people: (
            Previews(model, source.held_out_photos(people), networks) if held_out else None
        ),
    }
    recipe.evaluators = make_evaluators(config.evaluators, known)
    return recipe, source


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

    def __post_init__(self):
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
                f"training.batch_size = {self.batch_size} cannot be divided into "
                f"training.accumulate = {self.accumulate} micro-batches"
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
        """alpha / rank; 1 without a LoRA."""
        return self.lora_alpha / self.lora_rank if self.lora_rank and self.lora_alpha else 1.0


SETTINGS = {"training": CapFaceTraining}


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
        make_batch: Callable[[Any, dict], Batch] | None = None,
        shared: Mapping[str, Any] | None = None,
        hashes: Mapping[str, str] | None = None,
    ):
        """
        Args:
            model: sizes of networks and pictures.
            cfg: everything that decides the run.
            base: the `base_model.networks_needed`, arrays on the host, or shapes alone, with which
                the step can only be compiled.
            row_shapes: of a global batch as the loader gives it.
            mesh: devices over which batches are split, None for one device.
            platform: what is compiled for, if not what JAX runs on.
            empty_text: {"ids" (L,)} and, where text is stored, {"text" (L, W)} of no prompt.
            make_batch: (shared, rows) → Batch, called for one micro-batch at a time; None where
                rows are the fields of a Batch.
            shared: arrays for `make_batch`, frozen as "data".
            hashes: {network: sha256} of the base, computed where they are not known.

        Raises:
            SettingError: `unfreeze` picks nothing.
        """
        self.model, self.cfg, self._base = model, cfg, base
        self._make_batch, self._mesh = make_batch, mesh
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
            shapes["lora"] = jax.eval_shape(lambda: self._new_lora(leaves["unet"]))
            targets = lora_layers.targets(leaves["unet"], cfg.lora_targets)
            keep = [f"unet.{path}" for path in targets]
        if hashes is None:
            leaf = jax.tree.leaves(base)[0]
            abstract = isinstance(leaf, jax.ShapeDtypeStruct)
            hashes = {} if abstract else {name: tree_hash(base[name]) for name in frozen}
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
        self._step = self._make_step(self._graphs, mesh, self._optimizer)
        self._row_shapes = dict(row_shapes)
        self.flops = self.count_flops()

    def count_flops(self, lanes: int = 1) -> int:
        """Operations of one step over all devices, without what is computed again, on matrix units
        with sides of `lanes` (`flops.of`).
        """
        compute = ComputeConfig(jnp.dtype(self.cfg.dtype), "xla")
        plain = registry.abstract(self.model, compute, only=self._graphs)
        graphs = {name: graph for name, (graph, _) in plain.items()}
        # An optimizer has no products: what it does need not be traced.
        step = self._make_step(graphs, None, optax.identity())
        arguments = self.abstract_state(), shapes_of(self.frozen), self._row_shapes
        return flops.count(step, *arguments, lanes=lanes)

    def init_params(self) -> Tree:
        """CapFace, projector and LoRA factors; the same for the same seed, wherever it runs."""
        base, cfg = self._base, self.cfg
        if cfg.init_from == "base":
            params = {name: base[name] for name in registry.TRAINABLE}
        else:
            params = base_model.new_capface(self.model, base["unet"], cfg.seed)
        if cfg.lora_rank:
            params["lora"] = self._new_lora(base["unet"])
        return params | self._unfrozen

    def _new_lora(self, unet: Mapping[str, Any]) -> Tree:
        cfg, generator = self.cfg, np.random.default_rng([self.cfg.seed, 2])
        return lora_layers.start(unet, cfg.lora_rank, cfg.lora_targets, generator)

    def init_state(self, params: Tree) -> TrainState:
        averaged = None if self.cfg.ema_decay else ()
        return TrainState.create(params, self._optimizer, averaged)

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def _make_step(
        self,
        graphs: Mapping[str, nnx.GraphDef],
        mesh,
        optimizer: optax.GradientTransformation,
    ) -> Callable:
        cfg = self.cfg
        return make_train_step(
            functools.partial(self._inputs, mesh),
            gradients_of(self._loss(graphs)),
            optimizer,
            keys=self._picture_keys,
            accumulate=cfg.accumulate,
            average=MovingAverage(cfg.ema_decay) if cfg.ema_decay else None,
            learning_rate=self._learning_rate,
            mesh=mesh,
        )

    def _picture_keys(self, step) -> Key[Array, " b"]:
        """One key for each picture of a step's global batch."""
        key = jax.random.fold_in(jax.random.key(self.cfg.seed), step)
        numbers = jnp.arange(self.cfg.batch_size)
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)

    def _inputs(self, mesh, frozen, rows, keys, step) -> tuple[Batch, Noise]:
        """What the loss is computed of: rows of records as a batch, and each picture's noise."""
        constrain = sharding.constrain_batch(mesh)
        make_batch = self._make_batch or (lambda shared, rows: Batch(**rows))
        batch = constrain(make_batch(frozen.get("data"), rows))
        return batch, constrain(noise_of_pictures(keys, self.model, self.cfg.identity_dropout_prob))

    def _loss(self, graphs: Mapping[str, nnx.GraphDef]) -> Callable:
        cfg, prediction = self.cfg, self.model.diffusion.prediction_type
        objective = Objective(
            mask_weight=cfg.mask_weight,
            timestep_weight=(
                lambda alpha: loss.min_snr_weight(alpha, cfg.min_snr_gamma, prediction)
            )
            if cfg.min_snr_gamma
            else None,
            lora_scale=cfg.lora_scale,
        )
        return make_loss(self.model, graphs, objective, jnp.dtype(cfg.dtype))

    def held_out_loss(self, batches: Callable[[], list[dict]]) -> Callable:
        """`objective.held_out_loss`; `batches` gives this host's rows, and is called once."""
        batches, place = functools.cache(batches), lambda rows: rows
        if self._mesh is not None:
            place = functools.partial(sharding.place_batch, mesh=self._mesh)
        return held_out_loss(
            self._loss(self._graphs),
            functools.partial(self._inputs, self._mesh),
            self._picture_keys,
            lambda: map(place, batches()),
        )


def abstract_recipe(config, mesh, platform: str | None) -> tuple[CapFaceRecipe, dict]:
    """(recipe, shapes of a batch's rows) of a configuration, with shapes for numbers, to be
    compiled.

    The model is the base's if `base` is given, else `model`; batches hold hints, moments, encoded
    text and image tokens (`stored_batch`).
    """
    cfg = from_config(CapFaceTraining, config.training, "training")
    model = (
        model_folder.read_config(base_model.find(config.base))
        if config.base
        else ModelConfig.from_dict(config.model.to_dict())
    )
    stored = ("moments", "text", "image_tokens")
    shapes = {
        name: leaves
        for name, (_, leaves) in registry.abstract(
            model, only=base_model.networks_needed(model, stored, cfg.init_from == "base")
        ).items()
    }
    empty = {
        "ids": jax.ShapeDtypeStruct((model.text.length,), jnp.int32),
        "text": jax.ShapeDtypeStruct(
            (model.text.length, model.unet.cross_attention_dim), jnp.float32
        ),
    }
    rows = stored_batch(model, cfg.batch_size)
    recipe = CapFaceRecipe(model, cfg, shapes, rows, mesh=mesh, platform=platform, empty_text=empty)
    return recipe, rows


def export(config, workdir: Path, params: dict, folder: Path, metadata: dict) -> None:
    """A model folder of the base with what was trained; see `base_model.export`."""
    cfg = from_config(CapFaceTraining, config.training, "training")
    where = base_model.find(config.base)
    metadata = {"base": str(config.base), **metadata}
    base_model.export(where, params, folder, metadata, cfg.lora_scale * cfg.lora_rank)
