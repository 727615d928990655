"""The small model's training as a recipe: UNet, CapFace, projector and text encoder from nothing,
on a frozen autoencoder that is trained first. Its photos rest on the devices, and each step samples
its own batch from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, Key

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import loss
from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.models import registry
from caphuman_jax.models.capface import start_from_unet
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import dataset
from caphuman_jax.training.objective import (
    Batch,
    Noise,
    NoiseKeys,
    Objective,
    held_out_loss,
    make_loss,
    sample_noise,
)
from caphuman_jax.training.optimizer import learning_rate_schedule, make_adamw
from caphuman_jax.training.previews import Previews
from caphuman_jax.training.recipe import Recipe, Stage, make_evaluators, tree_hash
from caphuman_jax.training.recipes import autoencoder
from caphuman_jax.training.resident_batches import resident, sample_batch
from caphuman_jax.training.run_config import from_config
from caphuman_jax.training.step import (
    MovingAverage,
    TrainState,
    Tree,
    gradients_of,
    make_train_step,
)
from caphuman_jax.weights import model_card
from caphuman_jax.weights.model_folder import find_model, load_params, read_config, save_model
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.prepare.captions import WORDS

TRAINED = ("unet", "capface", "identity", "text")


@dataclasses.dataclass(frozen=True)
class MiniTraining:
    """Everything that decides a run.

    What guidance compares with, a picture without text, identity or control, is dropped together
    more often than alone.

    Attributes:
        steps: of the whole run.
        batch_size: pictures of a step over all devices.
        learning_rate: of AdamW, after `warmup_steps` steps; then cosine decay to a hundredth.
        weight_decay: of AdamW, on matrices only.
        grad_clip_norm: largest global norm of the gradient.
        ema_decay: of the moving average of the parameters.
        min_snr_gamma: see `timestep_weight`.
        timestep_power: 1: all timesteps are as frequent; above, noisy ones are rarer, see
            `objective.sample_noise`.
        timestep_power_growth: by how much the power grows in the course of the run, evenly.
        face_weight, feature_weight: how much the denoiser's error counts on the face, and on eyes,
            brows and mouth, as against 1 elsewhere.
        mask_weight: of the mask's error next to the denoiser's.
        color_share: share of photos in color in a batch.
        background_swap_prob: share of photos in color whose background gets another color, which
            the caption then names.
        clothes_swap_prob: likewise of clothes.
        no_text_prob: share of the pictures without their prompt.
        no_identity_prob, no_control_prob: shares without identity and without CapFace, of pictures
            with a prompt; with the ending _without_text, of those without one.
        identity_dropout_prob: share of the pictures whose identity tokens are kept only from a
            random timestep down.
        rare_head_weight: how much more often photos are picked whose head is turned or whose
            expression is uncommon, see `resident_batches.repeats`; 0: all alike.
        identity_swap_prob: share of the pictures whose hints have the identity of another photo of
            the person, or a mirrored albedo.
        grayscale_prob: share of photos in color that are shown without.
        light: photos and their heads' light are changed by factors up to this one, or its
            inverse.
        seed: decides everything random.
        dtype: "bfloat16" or "float32", of what is computed; weights are float32.
        augment: changes of photo and hints.
    """

    steps: int = 20000
    batch_size: int = 1024
    learning_rate: float = 4e-4
    warmup_steps: int = 500
    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    ema_decay: float = 0.9995
    min_snr_gamma: float = 5.0
    timestep_power: float = 1.0
    timestep_power_growth: float = 0.0
    face_weight: float = 2.0
    feature_weight: float = 3.0
    mask_weight: float = 1.0
    color_share: float = 0.65
    background_swap_prob: float = 0.4
    clothes_swap_prob: float = 0.0
    no_text_prob: float = 0.12
    no_identity_prob: float = 0.05
    no_identity_prob_without_text: float = 0.2
    identity_dropout_prob: float = 0.1
    no_control_prob: float = 0.05
    no_control_prob_without_text: float = 0.3
    rare_head_weight: float = 0.0
    identity_swap_prob: float = 0.5
    grayscale_prob: float = 0.08
    light: float = 1.0
    seed: int = 0
    dtype: str = "bfloat16"
    augment: AugmentConfig = AugmentConfig()


class MiniRecipe(Recipe):
    """All networks but the autoencoder's, on the photos of `dataset.build`."""

    def __init__(
        self,
        model: ModelConfig,
        cfg: MiniTraining,
        vae: Tree,
        data: dict,
        mesh=None,
        held_out: dict | None = None,
        start: Tree | None = None,
    ):
        """
        Args:
            model: sizes of networks and pictures.
            cfg: everything that decides the run.
            vae: the autoencoder's parameters.
            data: of `dataset.build`.
            mesh: devices over which batches are split, None for one device.
            held_out: as `data`, of other people, for `held_out_loss`.
            start: parameters of the trained networks that the run starts with, else random ones.
        """
        self.model, self.cfg, self._mesh, self._start = model, cfg, mesh, start
        networks = (*TRAINED, "vae")
        abstract = registry.abstract(model, ComputeConfig(cfg.dtype), only=networks)
        graphs = {name: graph for name, (graph, _) in abstract.items()}
        self.name = f"{model.name} from {'nothing' if start is None else 'given weights'}"
        self.batch_size, self.steps = cfg.batch_size, cfg.steps
        self.settings = {"model": model.to_dict(), "training": dataclasses.asdict(cfg)}
        if start is not None:
            self.settings["start"] = tree_hash(start)
        self.param_shapes = {name: abstract[name][1] for name in TRAINED}
        self.frozen = {
            "vae": jax.device_get(vae),
            "empty": {"ids": data["empty"]},
            "data": resident(data, cfg.rare_head_weight),
        }
        if held_out is not None:
            self.frozen["data_held_out"] = resident(held_out)
        self.frozen_hashes = {"vae": tree_hash(self.frozen["vae"])}
        self._optimizer = make_adamw(
            learning_rate_schedule(
                "cosine",
                cfg.learning_rate,
                warmup=min(cfg.warmup_steps, cfg.steps // 10),
                steps=cfg.steps,
            ),
            b2=0.99,
            weight_decay=cfg.weight_decay,
            decay="matrices",
            clip=cfg.grad_clip_norm,
        )
        self._loss = self._make_loss(graphs)
        self._step = self._make_step(self._loss, mesh, self._optimizer)
        plain = registry.abstract(model, ComputeConfig(cfg.dtype, attention="xla"), only=networks)
        plain = self._make_loss({name: graph for name, (graph, _) in plain.items()})
        # An optimizer has no products: what it does need not be traced.
        step = self._make_step(plain, None, optax.identity())
        self.flops = flops.count(step, self.abstract_state(), self.frozen, {})

    def _make_loss(self, graphs) -> Callable:
        cfg, prediction = self.cfg, self.model.diffusion.prediction_type
        objective = Objective(
            mask_weight=cfg.mask_weight,
            timestep_weight=lambda alpha: timestep_weight(alpha, cfg, prediction),
            face_weight=cfg.face_weight,
            feature_weight=cfg.feature_weight,
            area_per_picture=False,
        )
        return make_loss(self.model, graphs, objective, jnp.float32)

    def _make_step(
        self, loss_fn: Callable, mesh, optimizer: optax.GradientTransformation
    ) -> Callable:
        return make_train_step(
            functools.partial(self._inputs, self.cfg, "data", mesh),
            gradients_of(loss_fn),
            optimizer,
            keys=functools.partial(step_key, self.cfg),
            average=MovingAverage(self.cfg.ema_decay),
        )

    def init_params(self) -> Tree:
        if self._start is not None:
            return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self._start)
        with sharding.on_cpu():
            return jax.device_get(init_params(self.model, self.cfg))

    def init_state(self, params: Tree) -> TrainState:
        return TrainState.create(params, self._optimizer)

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def _inputs(self, cfg, name, mesh, frozen, rows, key, step) -> tuple[Batch, Noise]:
        """A batch of the photos that are frozen under `name`, and its noise."""
        batch_key, latent_key, key = jax.random.split(key, 3)
        batch = sample_batch(frozen[name], batch_key, cfg, self.model.image_size, mesh)
        batch = sharding.constrain_batch(mesh)(batch)
        time, noise, limited, tau, identity, control = jax.random.split(key, 6)
        keys = NoiseKeys(time, noise, latent_key, limited, tau)
        return (
            drop_conditions(batch, identity, control, cfg),
            sample_noise(
                keys,
                self.model,
                cfg.identity_dropout_prob,
                (cfg.batch_size,),
                timestep_power(cfg, step),
            ),
        )

    def sampled_rows(self, frozen, step):
        key = jax.random.split(step_key(self.cfg, step), 3)[0]
        sample = lambda data, key: sample_batch(data, key, self.cfg, self.model.image_size)
        batch = jax.jit(sample)(frozen["data"], key)
        return {name: value for name, value in vars(batch).items() if value is not None}

    def held_out_loss(self):
        """`objective.held_out_loss` on one batch of held-out people, who are shown as they are."""
        unchanged = {
            "grayscale_prob": 0.0,
            "background_swap_prob": 0.0,
            "clothes_swap_prob": 0.0,
            "identity_swap_prob": 0.0,
            "light": 1.0,
            "timestep_power": 1.0,
            "timestep_power_growth": 0.0,
        }
        cfg = dataclasses.replace(self.cfg, **unchanged)
        inputs = functools.partial(self._inputs, cfg, "data_held_out", self._mesh)
        return held_out_loss(self._loss, inputs, functools.partial(step_key, cfg), lambda: [{}])


def step_key(cfg: MiniTraining, step) -> Key[Array, ""]:
    """What everything random in a step comes from."""
    return jax.random.fold_in(jax.random.key(cfg.seed), step)


def timestep_power(cfg: MiniTraining, step: Int[Array, ""]) -> float | Float[Array, ""]:
    """The power of `objective.sample_noise` at a step."""
    if not cfg.timestep_power_growth:
        return cfg.timestep_power
    share = step.astype(jnp.float32) / jnp.float32(cfg.steps)
    return cfg.timestep_power + cfg.timestep_power_growth * share


def drop_conditions(
    batch: Batch, identity: Key[Array, ""], control: Key[Array, ""], cfg: MiniTraining
) -> Batch:
    """The batch, some of its pictures without identity or control; of those without text, more."""
    assert batch.without_text is not None, "this recipe's batches choose"
    share = lambda with_text, without: jnp.where(batch.without_text, without, with_text)
    uniform = lambda key: jax.random.uniform(key, (cfg.batch_size,))
    return dataclasses.replace(
        batch,
        without_identity=uniform(identity)
        < share(cfg.no_identity_prob, cfg.no_identity_prob_without_text),
        without_control=uniform(control)
        < share(cfg.no_control_prob, cfg.no_control_prob_without_text),
    )


def timestep_weight(
    alpha: Float[Array, " b"], cfg: MiniTraining, prediction: str
) -> Float[Array, " b"]:
    """Weights (B,) of the squared error at signal levels alpha (B,).

    For "epsilon" those of min-SNR. They say nothing of where only noise is left, which is where a
    prompt decides most: for "v", x0's error counts min(SNR + 1, min_snr_gamma), so 1 at the noisy
    end instead of 0."""
    if prediction == "epsilon":
        return loss.min_snr_weight(alpha, cfg.min_snr_gamma, prediction)
    return jnp.minimum(1.0, cfg.min_snr_gamma * (1 - alpha))


def init_params(model: ModelConfig, cfg: MiniTraining) -> Tree:
    """Freshly initialized parameters of the trained networks."""
    networks = registry.init(model, jax.random.key(cfg.seed), ComputeConfig(cfg.dtype))
    params = {name: networks[name][1] for name in TRAINED}
    # Unit recognition vectors have small entries: bring their token to the scale of the others.
    width = jnp.sqrt(jnp.float32(model.identity.recognition_width))
    recognition = params["identity"]["recognition"]
    recognition["kernel"] = recognition["kernel"] * width
    params["capface"] = start_from_unet(params["capface"], params["unet"])
    return params


SETTINGS = {"training": MiniTraining, "autoencoder": autoencoder.AutoencoderTraining}


def stages(config, workdir: Path) -> list[Stage]:
    """The autoencoder, in WORKDIR/autoencoder unless another model's is taken, then everything
    else, from nothing or from another model's weights.
    """
    records = functools.cache(lambda: _records(config))
    first = (
        []
        if config.get("weights_from") or config.get("autoencoder_from")
        else [autoencoder.stage(config, workdir / "autoencoder", records)]
    )
    return [
        *first,
        Stage(
            name="denoiser",
            workdir=workdir,
            loop=config.loop,
            build=functools.partial(_build, config, workdir, records),
            export=functools.partial(export, config, workdir),
        ),
    ]


def _records(config):
    """(records, numbers of those to train on, of those held out)."""
    from data_pipeline.records.columns import load_records, training_split

    if not config.data:
        raise DataError(
            "no records given: --config.data=DIR, made by caphuman prepare --photos PHOTOS --out "
            "DIR"
        )
    records = load_records(config.data, config.model.image_size)
    return records, *training_split(records)


def _build(config, workdir: Path, records, mesh, log) -> tuple[MiniRecipe, None]:
    records, train_index, test_index = records()
    log(f"{len(train_index)} photos to train on, {len(test_index)} of other people held out")
    model, vae = _autoencoder(config, workdir)
    cfg = from_config(MiniTraining, config.training, "training")
    data = dataset.build(records, train_index, head=model.head, log=log)
    photos = config.evaluators.get("held_out", {}).get("pictures", 0)
    held_out = None
    if len(test_index) and photos:
        held_out = dataset.build(
            records, test_index[:photos], head=model.head, log=lambda line: None
        )
    recipe = MiniRecipe(model, cfg, vae, data, mesh, held_out, _start(config, model))
    # The folder of the records may move; what is in it may not change while a run is resumed.
    recipe.settings["photos"] = hashlib.sha256(
        "\n".join(data["name"].tolist()).encode()
    ).hexdigest()
    networks = lambda trained, frozen: trained | {"vae": frozen["vae"]}
    known = {
        "held_out": lambda pictures: recipe.held_out_loss() if held_out is not None else None,
        "previews": lambda people: (
            Previews(model, list(records.pictures[test_index[:people]]), networks)
            if len(test_index)
            else None
        ),
    }
    recipe.evaluators = make_evaluators(config.evaluators, known)
    return recipe, None


def _autoencoder(config, workdir: Path) -> tuple[ModelConfig, Tree]:
    """(configuration of the whole model, the autoencoder's parameters): of the model that
    `config.weights_from` or `config.autoencoder_from` names, or trained in WORKDIR. Raises
    ModelFolderError if there is no such model, SettingError if both are given.
    """
    start, given = config.get("weights_from"), config.get("autoencoder_from")
    if start and given:
        raise SettingError(
            "config.weights_from brings its model's autoencoder; leave config.autoencoder_from out"
        )
    given = start or given
    folder = find_model(given) if given else workdir / "autoencoder" / "model"
    model = read_config(folder)
    if given:
        wanted = ModelConfig.from_dict(config.model.to_dict())
        model = dataclasses.replace(wanted, vae=model.vae)
    shapes = registry.abstract(model, only=("vae",))["vae"][1]
    return model, load_params(folder, {"vae": shapes})["vae"]


def _start(config, model: ModelConfig) -> Tree | None:
    """The parameters that training starts with, of the model that `config.weights_from` names.

    Raises:
        SettingError: that model's networks are not those of `model`, or it predicts something else.
    """
    if not config.get("weights_from"):
        return None
    folder = find_model(config.weights_from)
    wanted, theirs = model.to_dict(), read_config(folder).to_dict()
    parts = ("unet", "capface", "identity", "text", "diffusion", "image_size")
    other = [part for part in parts if theirs[part] != wanted[part]]
    if other:
        raise SettingError(
            f"config.weights_from: {folder} has another {', '.join(other)} than config.model"
        )
    shapes = {name: registry.abstract(model, only=(name,))[name][1] for name in TRAINED}
    return load_params(folder, shapes)


def export(config, workdir: Path, params: Tree, folder: Path, metadata: dict) -> None:
    """A model folder of the trained parameters and the autoencoder."""
    model, vae = _autoencoder(config, workdir)
    networks = params | {"vae": vae}
    metadata = {**metadata, "prompt_words": " ".join(sorted(WORDS))}
    save_model(
        folder,
        model,
        networks,
        dtype=np.float16,
        overwrite=True,
        metadata=metadata,
        more=lambda part: model_card.write(part, replaced=folder),
    )
