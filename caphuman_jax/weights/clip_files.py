"""CLIP with its two projections, which put pictures and texts into one space: kept by an import,
and read from a model folder or from a folder of transformers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from caphuman_jax.config import SD15, ImageEncoderConfig, ModelConfig, TextConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import registry
from caphuman_jax.weights import import_plan, model_folder, network_configs, sources
from caphuman_jax.weights.import_plan import Piece, Pieces
from caphuman_jax.weights.sources import Found, Source

NAME = "clip_projections"
"""Of the file in a model folder."""
_ENCODERS = ("text", "image_encoder")
_PARTS = {"text": "text_projection.weight", "image_encoder": "visual_projection.weight"}
_HEAD_WIDTH = 64  # of OpenAI's CLIPs, where config.json does not say how many heads there are


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's two encoders and their projections.

    Attributes:
        config: of which `text` and `image_encoder` count.
        params: {"text", "image_encoder": nested dicts of float32 arrays}.
        projections: {"text", "image_encoder": (width, P) float32}.
        tokenizer: its vocab.json and merges.txt; None: CLIP's, which are shipped.
    """

    config: ModelConfig
    params: Mapping[str, Any]
    projections: Mapping[str, np.ndarray]
    tokenizer: tuple[Path, Path] | None


def find(chosen: Mapping[str, Source]) -> Pieces:
    """The projections of the encoders that an import takes, {"text.kernel": …,
    "image_encoder.kernel": …}; {} unless both encoders are of one CLIP that has them.

    Args:
        chosen: network → the source that gives it.

    Raises:
        ModelFolderError: they do not fit the encoders.
    """
    if any(name not in chosen for name in _ENCODERS) or chosen["text"] is not chosen[_ENCODERS[1]]:
        return {}
    source, pieces = chosen["text"], {}
    for network, ending in _PARTS.items():
        checkpoint = source.networks[network].checkpoint
        key = next((key for key in checkpoint if key.endswith(ending)), None)
        if key is None:
            return {}
        shape = tuple(checkpoint.shape(key))
        width = _width(source.networks[network])
        if len(shape) != 2 or shape[1] != width:
            return {}  # the encoders themselves are what the model needs
        path = f"{network}.kernel"
        pieces[path] = Piece(path, shape[::-1], checkpoint.dtype(key), checkpoint, key)
    widths = {piece.shape[1] for piece in pieces.values()}
    return pieces if len(widths) == 1 else {}


def of_model(path: Path) -> Clip | None:
    """The CLIP in a model folder; None where it has no projections.

    Raises:
        ModelFolderError: a file is missing or damaged.
    """
    config, there = model_folder.read_config(path), model_folder.file_entries(path)
    if NAME not in there or config.image_encoder is None:
        return None
    shapes = {name: s for name, (_, s) in registry.abstract(config, only=_ENCODERS).items()}
    model_folder.verify_network(path, NAME)
    with model_folder.stored_networks(path) as networks:
        stored = {name: tensor.read() for name, tensor in networks[NAME].items()}
    projections = {name: stored[f"{name}.kernel"].astype(np.float32) for name in _ENCODERS}
    params = model_folder.load_params(path, shapes)
    return Clip(config, params, projections, model_folder.tokenizer_files(path))


def of_transformers(path: str | Path) -> Clip:
    """The CLIP in a folder (or a file, or a name of the hub) in transformers' form.

    Raises:
        ModelFolderError: it cannot be read, or is not a CLIP with both projections.
    """
    source = sources.read("clip", path)
    try:
        if any(name not in source.networks for name in _ENCODERS):
            raise ModelFolderError(
                f"{path} is not a CLIP with a text encoder and an image encoder, such as the "
                f"folder openai/clip-vit-large-patch14"
            )
        config = dataclasses.replace(
            SD15,
            text=_text(source.networks["text"]),
            image_encoder=_image(source.networks["image_encoder"]),
        )
        chosen = dict.fromkeys(_ENCODERS, source)
        config = network_configs.follow(config, chosen)
        pieces = find(chosen)
        if not pieces:
            raise ModelFolderError(
                f"{path} lacks text_projection or visual_projection, which make CLIP's pictures "
                f"and texts comparable; take the whole CLIP"
            )
        wanted = {
            name: import_plan.flat(shapes)
            for name, (_, shapes) in registry.abstract(config, only=_ENCODERS).items()
        }
        found = {name: source.networks[name] for name in _ENCODERS}
        plan, _ = import_plan.make_plan(config, wanted, found, False)
        read = lambda piece: np.ascontiguousarray(piece.read(), np.float32)
        params = {
            name: traverse_util.unflatten_dict(
                {path: read(piece) for path, piece in plan[name].items()}, sep="."
            )
            for name in _ENCODERS
        }
        projections = {name: read(pieces[f"{name}.kernel"]) for name in _ENCODERS}
        folder = source.tokenizer
        files = None if folder is None else (folder / "vocab.json", folder / "merges.txt")
        return Clip(config, params, projections, files)
    finally:
        source.close()


def _text(found: Found) -> TextConfig:
    vocabulary, width = _shape(found, "text_model.embeddings.token_embedding.weight")
    mlp, _ = _shape(found, "text_model.encoder.layers.0.mlp.fc1.weight")
    heads = max(1, width // _HEAD_WIDTH)
    return TextConfig(vocabulary=vocabulary, width=width, heads=heads, mlp_width=mlp)


def _image(found: Found) -> ImageEncoderConfig:
    width, _, patch, _ = _shape(found, "vision_model.embeddings.patch_embedding.weight")
    count, _ = _shape(found, "vision_model.embeddings.position_embedding.weight")
    mlp, _ = _shape(found, "vision_model.encoder.layers.0.mlp.fc1.weight")
    return ImageEncoderConfig(
        image_size=patch * math.isqrt(count - 1),
        patch=patch,
        width=width,
        heads=max(1, width // _HEAD_WIDTH),
        mlp_width=mlp,
    )


def _width(found: Found) -> int:
    """Of an encoder's vectors, by its last norm."""
    ending = ("final_layer_norm.weight", "post_layernorm.weight")
    key = next((key for name, key in found.keys.items() if name.endswith(ending)), None)
    return found.checkpoint.shape(key)[0] if key else 0


def _shape(found: Found, name: str) -> tuple[int, ...]:
    if name not in found.keys:
        raise ModelFolderError(f"{found.path} is not a CLIP in transformers' form: no {name}")
    return tuple(found.checkpoint.shape(found.keys[name]))
