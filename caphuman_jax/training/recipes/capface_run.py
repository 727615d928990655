"""CapHuman's training from a configuration such as configs/sd15.py: base, records, evaluators, and
the model folder in the end.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.io.metadata import checksums
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.runtime import sharding
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.training.batches import RecordBatches
from caphuman_jax.training.previews import Previews
from caphuman_jax.training.recipe import Stage, make_evaluators
from caphuman_jax.training.recipes.capface import (
    CapFaceRecipe,
    CapFaceTraining,
    networks_needed,
    stored_batch,
)
from caphuman_jax.training.run_config import from_config
from caphuman_jax.weights import model_folder
from data_pipeline.records.manifest import records_hash

LORA_FILE = "lora.safetensors"
"""A trained LoRA's file in an exported model folder, for `--lora`; the folder's UNet is the base's.
"""


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
    cfg.check()
    where = _base(config)
    model = model_folder.read_config(where)
    hashes = checksums(where)
    source = RecordBatches(config, model, cfg, mesh, hashes)
    needed = networks_needed(cfg, model, source.stored)
    log(f"base {where}: {', '.join(needed)}; {source.summary}")
    shapes = {name: leaves for name, (_, leaves) in registry.abstract(model, only=needed).items()}
    recipe = CapFaceRecipe(
        model,
        cfg,
        model_folder.load_params(where, shapes),
        source.batch_shapes,
        mesh=mesh,
        empty_text=_empty_text(where, model, "text" in source.stored),
        assemble=source.assemble,
        shared=source.shared,
        hashes=hashes,
    )
    # The folder of the records may move; what is in it may not change while a run is resumed.
    recipe.settings["records"] = records_hash(source.records.manifest)
    held_out = source.records.splits.get("test", 0)
    networks = functools.partial(whole_model, where, model, cfg)
    known = {
        "held_out": lambda pictures: (
            recipe.held_out_error(lambda: source.held_out(pictures)) if held_out else None
        ),
        "previews": lambda people: (
            Previews(model, source.held_out_photos(people), networks) if held_out else None
        ),
    }
    recipe.evaluators = make_evaluators(config.evaluators, known)
    return recipe, source


def whole_model(
    where: Path,
    model: ModelConfig,
    cfg: CapFaceTraining,
    trained: Mapping[str, Any],
    frozen: Mapping[str, Any],
) -> dict[str, Any]:
    """{network: parameters} of all that pictures need: what is trained, a LoRA added, and the rest
    of the base in the folder `where`.
    """
    known = registry.abstract(model) | registry.abstract(model, only=registry.OPTIONAL)
    there = {
        name: shapes
        for name, (_, shapes) in known.items()
        if name in checksums(where) and name not in ("unet", *registry.TRAINABLE)
    }
    params = trainable.joined(
        {name: tree for name, tree in trained.items() if name != "lora"}, {"unet": frozen["unet"]}
    )
    if "lora" in trained:
        params["unet"] = lora_layers.added(params["unet"], trained["lora"], cfg.lora_scale)
    return params | model_folder.load_params(where, there)


def abstract_recipe(config, mesh, platform: str | None) -> tuple[CapFaceRecipe, dict]:
    """(recipe, shapes of a batch's rows) of a configuration, with shapes for numbers, to be
    compiled.

    The model is the base's if `base` is given, else `model`; batches hold hints, moments, encoded
    text and image tokens (`stored_batch`).
    """
    cfg = from_config(CapFaceTraining, config.training, "training")
    cfg.check()
    model = (
        model_folder.read_config(_base(config))
        if config.base
        else ModelConfig.from_dict(config.model.to_dict())
    )
    stored = ("moments", "text", "image_tokens")
    shapes = {
        name: leaves
        for name, (_, leaves) in registry.abstract(
            model, only=networks_needed(cfg, model, stored)
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
    """A model folder: the base's networks as they are stored, with what was trained in their place;
    a LoRA as a file next to them.
    """
    where, cfg = _base(config), from_config(CapFaceTraining, config.training, "training")
    model = model_folder.read_config(where)
    lora = params.get("lora")
    with model_folder.stored_networks(where) as stored:
        networks = {
            name: traverse_util.unflatten_dict(
                {path: tensor.read() for path, tensor in tensors.items()}, sep="."
            )
            for name, tensors in stored.items()
            if name not in params or name == "unet"
        }
    networks = trainable.joined(
        {name: tree for name, tree in params.items() if name != "lora"}, networks
    )
    model_folder.save_model(
        folder,
        model,
        networks,
        dtype=None,
        overwrite=True,
        metadata={"base": str(config.base), **metadata},
    )
    if model_folder.tokenizer_files(where):
        shutil.copytree(where / "tokenizer", Path(folder) / "tokenizer", dirs_exist_ok=True)
    if lora:
        lora_layers.save(Path(folder) / LORA_FILE, model, lora, cfg.lora_scale * cfg.lora_rank)


def _base(config) -> Path:
    if not config.base:
        raise SettingError(
            "no base weights: --config.base=FOLDER, a model folder made by caphuman import of "
            "Stable Diffusion 1.5's file"
        )
    where = model_folder.find_model(config.base)
    if model_folder.read_config(where).inpainting:
        raise SettingError(
            f"{where} is an inpainting base; train on the plain base, such as Stable Diffusion "
            "1.5: the trained CapFace fits both"
        )
    return where


def _empty_text(where: Path, model: ModelConfig, encoded: bool) -> dict[str, np.ndarray]:
    """Token ids of no prompt and, if `encoded`, what the text encoder makes of them, in float32 on
    the host.
    """
    ids = np.asarray(
        ClipTokenizer(model_folder.tokenizer_files(where))([""], model.text.length), np.int32
    )
    if not encoded:
        return {"ids": ids[0]}
    graph, shapes = registry.abstract(model, only=("text",))["text"]
    params = model_folder.load_params(where, {"text": shapes})["text"]
    with sharding.on_cpu(), jax.default_matmul_precision("highest"):
        text = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids)[0])(params, ids)
    return {"ids": ids[0], "text": np.asarray(text[0])}
