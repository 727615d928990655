"""The small model's training as a recipe of the loop: its data rests on the devices, and each step
draws its own batch from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import DataError
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import dataset, diffusion
from caphuman_jax.training.previews import Previews
from caphuman_jax.training.recipe import Recipe, tree_hash
from caphuman_jax.training.recipes import autoencoder
from caphuman_jax.weights.model_folder import load_params, read_config, save_model
from data_pipeline.loading import augment

ON_DEVICE = (
    "pictures",
    "covered",
    "region",
    "hints",
    "tokens",
    "vectors",
    "partner",
    "captions",
    "grey",
    "empty",
    "features",
    "person",
    "background_ids",
    "background_rgb",
)
HELD_OUT, PREVIEWED = (
    64,
    8,
)  # photos of other people that the error is measured on, and of whom pictures are made


def recipe(
    model: ModelConfig,
    cfg: diffusion.DiffusionTraining,
    vae: dict,
    data: dict,
    mesh=None,
    held_out: dict | None = None,
    previews: Previews | None = None,
) -> Recipe:
    """Training of UNet, CapFace, projector and text encoder on `data` (`dataset.build`), with a
    frozen autoencoder.

    held_out: as `data`, of other people, for the error that is reported beside the training's;
    previews: pictures of them."""
    networks = (*diffusion.TRAINED, "vae")
    abstract = registry.abstract(model, ComputeConfig(cfg.dtype), only=networks)
    graphs = {name: graph for name, (graph, _) in abstract.items()}
    shapes = {name: abstract[name][1] for name in diffusion.TRAINED}
    frozen = {"vae": jax.device_get(vae), "data": resident(data)}
    if held_out is not None:
        frozen["data_held_out"] = resident(held_out)
    step = diffusion.make_step(model, graphs, cfg, mesh)
    begin = lambda params: diffusion.begin(cfg, params)
    plain = registry.abstract(model, ComputeConfig(cfg.dtype, attention="xla"), only=networks)
    arithmetic = flops.count(
        diffusion.make_step(model, {name: graph for name, (graph, _) in plain.items()}, cfg),
        jax.eval_shape(begin, shapes),
        {"vae": frozen["vae"]},
        frozen["data"],
    )
    return Recipe(
        name=f"{model.name} from nothing",
        batch=cfg.batch,
        steps=cfg.steps,
        settings={"model": model.to_dict(), "training": dataclasses.asdict(cfg)},
        init_params=lambda: _init_params(model, cfg),
        shapes=shapes,
        begin=begin,
        step=lambda state, frozen, _: step(state, frozen, frozen["data"]),
        frozen=frozen,
        frozen_hashes={"vae": tree_hash(frozen["vae"])},
        flops=arithmetic,
        evaluate=None if held_out is None else _held_out_error(model, graphs, cfg, mesh),
        pictures=None if previews is None else previews.pictures,
        judge=None if previews is None else previews.evaluate,
        redraw=lambda frozen, step: _redraw(model, cfg, frozen, step),
        export=lambda params, folder, metadata: _save(
            folder, model, params, frozen["vae"], metadata
        ),
    )


def resident(data: dict) -> dict:
    """What of `dataset.build` rests on every device, with the index of photos in color and
    without.
    """
    chosen = {name: data[name] for name in ON_DEVICE}
    chosen["colour_index"] = np.flatnonzero(~data["grey"]).astype(np.int32)
    chosen["grey_index"] = np.flatnonzero(data["grey"]).astype(np.int32)
    for kind in ("colour_index", "grey_index"):
        if not len(chosen[kind]):
            chosen[kind] = np.arange(len(data["grey"]), dtype=np.int32)
    return chosen


def _init_params(model: ModelConfig, cfg: diffusion.DiffusionTraining) -> dict:
    """Drawn and kept on the host."""
    with sharding.on_cpu():
        return jax.device_get(diffusion.init_params(model, cfg)[1])


def _held_out_error(model: ModelConfig, graphs: dict, cfg: diffusion.DiffusionTraining, mesh):
    """(params, frozen, step) -> the loss on held-out people, with the same photos, noise and
    timesteps every time.
    """
    cfg = dataclasses.replace(cfg, to_grey=0.0, replace_background=0.0, lent_identity=0.0)
    loss = diffusion.make_loss(model, graphs, cfg)

    @jax.jit
    def error(params, vae, data):
        k = jax.random.split(diffusion.step_key(cfg, 2**31 - 1), 3)
        batch = diffusion.draw(data, k[0], cfg, model.image_size, mesh)
        total, parts = loss(
            params, batch, diffusion.latents_of(model, graphs, vae, batch["pictures"], k[1]), k[2]
        )
        return {"loss": total} | parts

    return lambda params, frozen, step: jax.device_get(
        error(params, frozen["vae"], frozen["data_held_out"])
    )


def _redraw(model: ModelConfig, cfg: diffusion.DiffusionTraining, frozen: dict, step: int) -> dict:
    key = jax.random.split(diffusion.step_key(cfg, step), 3)[0]
    return jax.jit(lambda data, key: diffusion.draw(data, key, cfg, model.image_size))(
        frozen["data"], key
    )


def build(config, workdir: Path, mesh, log) -> tuple[Recipe, None]:
    """The recipe of a configuration such as configs/mini.py; trains the autoencoder first, in
    WORKDIR/autoencoder, where there is none.
    """
    from data_pipeline.records.columns import load_records, training_split

    if not config.data:
        raise DataError(
            "no records given: --config.data=DIR, made by caphuman prepare --photos PHOTOS --out "
            "DIR"
        )
    records = load_records(config.data, config.model.image_size)
    train_index, test_index = training_split(records)
    log(f"{len(train_index)} photos to train on, {len(test_index)} of other people held out")
    model, vae = _autoencoder(config, workdir, records, train_index)
    training = dict(config.training.to_dict())
    training["augment"] = augment.AugmentConfig(**training["augment"])
    cfg = diffusion.DiffusionTraining(**training)
    data = dataset.build(records, train_index, log=log)
    held_out = (
        dataset.build(records, test_index[:HELD_OUT], log=lambda line: None)
        if len(test_index)
        else None
    )
    previews = Previews(
        model,
        list(records.pictures[test_index[:PREVIEWED]]),
        lambda trained, frozen: trained | {"vae": frozen["vae"]},
    )
    made = recipe(model, cfg, vae, data, mesh, held_out, previews if len(test_index) else None)
    # The folder of the records may move; what is in it may not change while a run goes on.
    photos = hashlib.sha256("\n".join(data["name"].tolist()).encode()).hexdigest()
    return dataclasses.replace(made, settings=made.settings | {"photos": photos}), None


def _autoencoder(
    config, workdir: Path, records, train_index: np.ndarray
) -> tuple[ModelConfig, dict]:
    """(configuration, weights) of the trained autoencoder."""
    folder = workdir / "autoencoder"
    if not (folder / "config.json").exists():
        model = ModelConfig.from_dict(config.model.to_dict())
        cfg = autoencoder.AutoencoderTraining(**config.autoencoder)
        pictures = records.pictures[train_index]
        graph, params, _ = autoencoder.train(
            cfg,
            model.vae,
            pictures,
            records.covered[train_index] * pictures.shape[1],
            features=autoencoder.recognizer_features() if cfg.feature_weight > 0 else None,
        )
        params, vae_cfg = autoencoder.center_latents(
            graph, jax.device_get(nnx.to_pure_dict(params)), model.vae, pictures[:512], cfg.size
        )
        if jax.process_index() == 0:
            save_model(folder, dataclasses.replace(model, vae=vae_cfg), {"vae": params})
    _together("autoencoder")
    model = read_config(folder)
    return model, load_params(folder, {"vae": registry.abstract(model, only=("vae",))["vae"][1]})[
        "vae"
    ]


def export(config, workdir: Path, params: dict, folder: Path, metadata: dict) -> None:
    """A model folder of the trained parameters and the autoencoder in WORKDIR."""
    model = read_config(workdir / "autoencoder")
    vae = load_params(
        workdir / "autoencoder", {"vae": registry.abstract(model, only=("vae",))["vae"][1]}
    )["vae"]
    _save(folder, model, params, vae, metadata)


def _save(folder: Path, model: ModelConfig, params: dict, vae: dict, metadata: dict) -> None:
    save_model(
        folder, model, params | {"vae": vae}, dtype=np.float16, overwrite=True, metadata=metadata
    )


def _together(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
