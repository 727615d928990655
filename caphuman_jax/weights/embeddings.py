"""Textual-inversion embeddings (Gal et al. 2022, arXiv 2208.01618): words with vectors of their own
in the text encoder's vocabulary.

Read are the files of AUTOMATIC1111's webui (.pt with `string_to_param`, .safetensors with
`emb_params`), of diffusers (.bin or .safetensors with `<word>`), and those that kohya's sd-scripts
bundle in LoRA files (`bundle_emb.WORD.…`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.weights.checkpoint_files import Checkpoint, open_checkpoint

FOLDER = "embeddings"
"""Embeddings of a model folder are files here; their names are the words."""
_ENDINGS = (".safetensors", ".pt", ".bin")
_BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+)\.(?:string_to_param\.\*|emb_params)")
_OTHER_MODELS = ("clip_g", "clip_l")


def parse(text: str) -> tuple[Path, str | None]:
    """ "style.pt=mystyle" → (file, word); without "=", the word is None: the file's own."""
    if os.path.exists(text):  # `Path.exists` raises OSError for a name that is too long
        return Path(text), None
    path, equals, word = text.rpartition("=")
    if not equals:
        return Path(text), None
    if not word.strip():
        raise SettingError(f"--embedding {text}: write FILE or FILE=WORD")
    return Path(path), word.strip()


def of_folder(model_folder: Path) -> list[tuple[Path, str | None]]:
    """The embeddings that lie in a model folder, in the order of their names."""
    folder = Path(model_folder) / FOLDER
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(path, path.stem) for path in files if path.suffix in _ENDINGS]


def read_files(
    files: Sequence[tuple[str | os.PathLike, str | None]],
    config: ModelConfig,
    taken: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Embeddings for a model's text encoder.

    Args:
        files: (file, word) each; None: the words that the file names, else its own name.
        config: the model's.
        taken: words that are in use.

    Returns:
        {word: vectors (N, width) float32}, and what to record of each file.

    Raises:
        ModelFolderError: a file that is not an embedding, or for another text encoder.
        SettingError: a word that is taken, or named by two files.
    """
    found: dict[str, np.ndarray] = {}
    records = []
    for path, word in files:
        read = read_file(path, config, word)
        for name in read:
            if name in found or name in taken:
                raise SettingError(
                    f"there is an embedding {name!r} already; name that of {path} differently: "
                    f"--embedding {path}=WORD"
                )
        found |= read
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        records.append({"words": list(read), "name": Path(path).name, "sha256": digest})
    return found, records


def in_lora(path: str | os.PathLike) -> bool:
    """Whether a LoRA file has embeddings bundled in it."""
    with open_checkpoint(Path(path)) as checkpoint:
        return any(map(_BUNDLED.fullmatch, checkpoint))


def read_file(
    path: str | os.PathLike, config: ModelConfig, word: str | None = None
) -> dict[str, np.ndarray]:
    """{word: vectors (N, width) float32} of one file, see `read_files`."""
    path = Path(path).expanduser()
    with open_checkpoint(path, "") as checkpoint:
        found = _vectors(checkpoint, path)
    if word is not None and len(found) > 1:
        raise ModelFolderError(
            f"{path} holds {len(found)} embeddings ({', '.join(found)}); leave out ={word}"
        )
    if word is not None:
        found = dict(zip([word], found.values()))
    width = config.text.embed_width or config.text.width
    for name, vectors in found.items():
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ModelFolderError(f"{path} is damaged: {name} has the shape {vectors.shape}")
        if vectors.shape[1] != width:
            raise ModelFolderError(
                f"{path} does not fit: its vectors have {vectors.shape[1]} numbers, the text "
                f"encoder of {config.name} takes {width}; it was made for another base model"
            )
        if not np.isfinite(vectors).all():
            raise ModelFolderError(f"{path} is damaged: {name} has numbers that are not finite")
        if len(vectors) > config.text.length - 2:
            raise ModelFolderError(
                f"{path} has {len(vectors)} vectors; a prompt takes {config.text.length - 2}"
            )
    return found


def _vectors(checkpoint: Checkpoint, path: Path) -> dict[str, np.ndarray]:
    as_rows = lambda key: np.atleast_2d(np.asarray(checkpoint[key]).astype(np.float32))
    bundled = {match["word"]: key for key in checkpoint if (match := _BUNDLED.fullmatch(key))}
    if bundled:
        return {word: as_rows(key) for word, key in bundled.items()}
    if any(key in checkpoint for key in _OTHER_MODELS):
        raise ModelFolderError(f"{path} is an embedding for SDXL, not for Stable Diffusion 1")
    if "string_to_param.*" in checkpoint:
        name = checkpoint.extra.get("name")
        return {name if isinstance(name, str) and name else path.stem: as_rows("string_to_param.*")}
    if "emb_params" in checkpoint:
        return {path.stem: as_rows("emb_params")}
    names = list(checkpoint)
    if names and all(len(checkpoint.shape(name)) <= 2 for name in names) and len(names) <= 100:
        return {name: as_rows(name) for name in names}
    raise ModelFolderError(f"{path} is not a textual-inversion embedding")
