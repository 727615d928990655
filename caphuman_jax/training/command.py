"""`caphuman train`: from records to a model folder, autoencoder first, then the denoiser with its control branch."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from caphuman_jax.errors import CapHumanError, DataError


def add_arguments(parser) -> None:
    """The command's options; `--config.NAME=VALUE` overrides an entry of the configuration."""
    parser.add_argument("--config", default="mini", help="name of a file in configs/, without .py")
    parser.add_argument("--workdir", required=True, help="checkpoints, metrics and the finished model go here; the same folder resumes")
    parser.add_argument("--minutes", type=float, help="save and stop after so many minutes of denoiser training")
    parser.add_argument("--override", dest="overrides", action="append", default=[], metavar="NAME=VALUE",
                        help="another way to write --config.NAME=VALUE, for example --config.data=records --config.training.batch=64")


def read_config(name: str, overrides: list[str]):
    """The ConfigDict of configs/NAME.py with `a.b=value` entries applied (their types are those of the defaults)."""
    import ml_collections

    config: ml_collections.ConfigDict = _find_config(name).get_config()
    for entry in overrides:
        key, equals, value = entry.partition("=")
        path = key.split(".")
        place = config
        try:
            for part in path[:-1]:
                place = place[part]
            before = place[path[-1]]
        except (KeyError, TypeError) as error:
            raise CapHumanError(f"{entry}: the configuration has no entry {'.'.join(path)}") from error
        if not equals:
            raise CapHumanError(f"{entry}: write --config.{'.'.join(path)}=VALUE")
        try:
            place[path[-1]] = _as(type(before), value)
        except ValueError as error:
            raise CapHumanError(f"{entry}: {value!r} is not {type(before).__name__}") from error
    return config


def _find_config(name: str):
    """The module configs/NAME.py: of the installed package, or of the checkout that is the working folder."""
    for package in ("caphuman_jax.configs", "configs"):
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.{name}"):
                raise
    raise CapHumanError(f"there is no configuration {name!r} in configs/")


def _as(kind, text: str):
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)


def run(args) -> None:
    """Trains what is not trained yet and writes WORKDIR/model."""
    import jax
    import numpy as np
    from flax import nnx

    from caphuman_jax.config import ModelConfig
    from caphuman_jax.training import augment, autoencoder, dataset, diffusion, loop
    from caphuman_jax.weights.folder import load_params, save_model
    from data_pipeline.records import load_records, training_split

    config = read_config(args.config, args.overrides)
    if not config.data:
        raise DataError("no records given: --config.data=DIR, made by caphuman precompute --photos PHOTOS --out DIR")
    workdir = Path(args.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    model = ModelConfig.from_dict(config.model.to_dict())
    records = load_records(config.data)
    train_index, test_index = training_split(records)
    print(f"{len(train_index)} photos to train on, {len(test_index)} of other people held out; {len(jax.devices())} × {jax.devices()[0].device_kind}")

    folder = workdir / "autoencoder"
    if not (folder / "config.json").exists():
        cfg = autoencoder.AutoencoderTraining(**config.autoencoder)
        covered = records.covered * records.pictures.shape[1]
        graph, params, _ = autoencoder.train(
            cfg, model.vae, records.pictures[train_index], covered[train_index],
            features=autoencoder.recogniser_features() if cfg.feature_weight > 0 else None)
        params, vae_cfg = autoencoder.centre_latents(graph, jax.device_get(nnx.to_pure_dict(params)), model.vae, records.pictures[train_index[:512]], cfg.size)
        save_model(folder, dataclasses.replace(model, vae=vae_cfg), {"vae": params})
    from caphuman_jax import models
    from caphuman_jax.weights.folder import read_config as read_model_config

    model = read_model_config(folder)
    vae = load_params(folder, {"vae": models.abstract(model)["vae"][1]})["vae"]

    training = dict(config.training.to_dict())
    training["augment"] = augment.AugmentConfig(**training["augment"])
    cfg = diffusion.DiffusionTraining(**training)
    data = dataset.build(records, train_index)
    _, state = loop.train(model, cfg, vae, data, workdir, stop_after_minutes=args.minutes)
    params = jax.device_get(state["ema"]) | {"vae": vae}
    save_model(workdir / "model", model, params, dtype=np.float16, overwrite=True, metadata={"steps": int(state["step"]), "training": dataclasses.asdict(cfg)})
    print(f"{workdir / 'model'} after {int(state['step'])} steps")
