"""The base that CapFace is trained on: which of its networks training takes, what CapFace begins
as, and the whole model in the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.io.metadata import checksums
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.runtime import sharding
from caphuman_jax.training import lora_layers, trainable
from caphuman_jax.training.step import Tree
from caphuman_jax.weights import model_card, model_folder

LORA_FILE = "lora.safetensors"
"""A trained LoRA's file in an exported model folder, for `--lora`; the folder's UNet is the base's.
"""


def find(base: str) -> Path:
    """The folder of the base that a configuration names. Raises CapHumanError."""
    if not base:
        raise SettingError(
            "no base weights: --config.base=FOLDER, a model folder made by caphuman import of "
            "Stable Diffusion 1.5's file"
        )
    where = model_folder.find_model(base)
    if model_folder.read_config(where).inpainting:
        raise SettingError(
            f"{where} is an inpainting base; train on the plain base, such as Stable Diffusion "
            "1.5: the trained CapFace fits both"
        )
    return where


def networks_needed(model: ModelConfig, stored: Collection[str], capface: bool) -> list[str]:
    """The base's networks that training takes.

    Args:
        model: sizes of the base.
        stored: what of "moments", "text" and "image_tokens" the records hold.
        capface: whether training starts from the base's own CapFace and projector.

    Raises:
        SettingError: the base lacks a network that these records need.
    """
    on_the_fly = {"moments": "vae", "text": "text", "image_tokens": "image_encoder"}
    needed = [
        "unet",
        *(registry.TRAINABLE if capface else ()),
        *(net for name, net in on_the_fly.items() if name not in stored),
    ]
    if "image_encoder" in needed and model.image_encoder is None:
        raise SettingError(
            f"the model {model.name} has no image encoder: records for it need image tokens; "
            f"prepare them with --model"
        )
    return needed


def new_capface(model: ModelConfig, unet: Mapping[str, Any], seed: int) -> Tree:
    """CapFace and projector at step 0, on the host: layers as PyTorch's begin, CapFace's encoder a
    copy of the UNet's. The same for the same seed, wherever it runs.
    """
    with sharding.on_cpu():
        drawn = registry.init(model, jax.random.key(seed), only=registry.TRAINABLE)
        params = jax.device_get({name: tree for name, (_, tree) in drawn.items()})
    generator = np.random.default_rng([seed, 1])
    params = {name: _pytorch_init(tree, generator) for name, tree in params.items()}
    params["capface"]["encoder"] = jax.tree.map(np.copy, unet["encoder"])
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


def empty_text(where: Path, model: ModelConfig, encoded: bool) -> dict[str, np.ndarray]:
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


def whole_model(
    where: Path,
    model: ModelConfig,
    lora_scale: float,
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
        params["unet"] = lora_layers.added(params["unet"], trained["lora"], lora_scale)
    return params | model_folder.load_params(where, there)


def export(
    where: Path, params: Tree, folder: Path, metadata: Mapping[str, Any], lora_alpha: float
) -> None:
    """Writes a model folder: the base's networks as they are stored, with what was trained in their
    place; a LoRA as a file next to them.

    Args:
        where: the base's folder.
        params: {network: trained parameters}.
        folder: to write.
        metadata: of the model folder.
        lora_alpha: of a trained LoRA.
    """
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

    def add_files(part: Path) -> list[Path]:
        written = []
        if model_folder.tokenizer_files(where):
            shutil.copytree(where / "tokenizer", part / "tokenizer")
            written += [
                part / path.relative_to(where)
                for path in (where / "tokenizer").rglob("*")
                if path.is_file()
            ]
        if lora:
            lora_layers.save(part / LORA_FILE, model, lora, lora_alpha)
            written.append(part / LORA_FILE)
        return written + model_card.write(part, replaced=folder)

    model_folder.save_model(
        folder,
        model,
        networks,
        dtype=None,
        overwrite=True,
        metadata=metadata,
        more=add_files,
    )
