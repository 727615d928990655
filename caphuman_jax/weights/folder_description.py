"""config.json of a model folder: read, and checked except for the sizes of networks, which
`config.ModelConfig.from_dict` checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.config.rules import shown
from caphuman_jax.diffusion import samplers, schedule
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.head.models import registry as heads
from caphuman_jax.io import json_reader
from caphuman_jax.weights import requirements

FORMAT, FORMAT_VERSION = "caphuman_jax", 1
_UNSEEN = {
    "unet": ("heads", "groups"),
    "vae": ("groups", "scaling_factor"),
    "text": ("heads",),
    "image_encoder": ("heads",),
    "diffusion": ("num_timesteps", "beta_start", "beta_end", "prediction_type"),
}
"""Entries that no weight's shape shows: a default in their place would be another model."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def read_document(path: Path) -> dict[str, Any]:
    """The content of a model folder's config.json, with its entries checked; its "config" is not.

    Raises:
        ModelFolderError: there is none, it is damaged, or it is of another kind.
    """
    try:
        document = json_reader.read(path / "config.json")
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path} is not a model folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path / 'config.json'} cannot be read: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("config"), dict):
        if "recipe" in document["config"]:  # WORKDIR/config.json of `caphuman train`
            raise ModelFolderError(_instead_of_run(path))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ModelFolderError(f"{path / 'config.json'} is not the description of a {FORMAT} model")
    if document.get("format_version") != FORMAT_VERSION:
        raise ModelFolderError(
            f"{path} has format version {document.get('format_version')}; this program reads "
            f"{FORMAT_VERSION}: "
            "update the program or convert the model again"
        )
    missing = [
        key for key in ("config", "files", "metadata") if not isinstance(document.get(key), dict)
    ]
    if missing:
        raise ModelFolderError(f"{path / 'config.json'} lacks {', '.join(missing)}")
    for name, entry in document["files"].items():
        _check_entry(path, name, entry)
    return document


def check_complete(entries: Mapping[str, Any]) -> None:
    """Refuse a "config" without the entries that the weights do not show.

    Raises:
        ModelFolderError: with the first entry that is missing.
    """
    for part, names in _UNSEEN.items():
        given = entries.get(part, {})
        if given is None and part == "image_encoder":
            continue
        for name in names:
            if isinstance(given, dict) and name not in given:
                raise ModelFolderError(
                    f"config: {part}.{name} is missing; it must be the one of the training, which "
                    f"the weights do not show"
                )


def check_names(config: ModelConfig, there: Mapping[str, Any]) -> None:
    """Check names that are defined in other packages, and what follows from them.

    Args:
        config: the model's configuration.
        there: its networks by name.

    Raises:
        ModelFolderError: a name that there is not, or a recognizer whose vectors do not fit.
    """
    for entry, value, known in (
        ("head", config.head, heads.HEADS),
        ("diffusion.beta_schedule", config.diffusion.beta_schedule, schedule.BETA_SCHEDULES),
        ("sampling.sampler", config.sampling.sampler, samplers.SAMPLERS),
        ("sampling.spacing", config.sampling.spacing, schedule.SPACINGS),
    ):
        if value not in known:
            raise ModelFolderError(
                f"config: {entry} is {shown(value)}; it must be one of {', '.join(known)}"
            )
    identity = config.identity
    width = requirements.recognition_width(identity.recognizer)
    usable = identity.recognizer != "facenet" or "facenet" in there  # without: identity files only
    if usable and width not in (None, identity.recognition_width):
        raise ModelFolderError(
            f"config: identity.recognition_width is {identity.recognition_width}; it must be "
            f"{width}, which is what the recognizer {identity.recognizer} gives"
        )


def _check_entry(path: Path, name: Any, entry: Any) -> None:
    """An entry of "files": only regular names inside of the folder."""
    file = entry.get("file") if isinstance(entry, dict) else None
    if (
        not _FILE_NAME.fullmatch(str(name))
        or not isinstance(file, str)
        or not _FILE_NAME.fullmatch(file)
    ):
        raise ModelFolderError(
            f"{path / 'config.json'}: files.{name} is {shown(file if file else entry)}; it must "
            f'name a file in the folder itself, such as {{"file": "unet.safetensors"}}'
        )
    if not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
        raise ModelFolderError(
            f"{path / 'config.json'}: files.{name}.sha256 is {shown(entry.get('sha256'))}; it must "
            f"be 64 hexadecimal digits"
        )
    if type(entry.get("bytes", 0)) is not int or entry.get("bytes", 0) < 0:
        raise ModelFolderError(
            f"{path / 'config.json'}: files.{name}.bytes is {shown(entry['bytes'])}; it must be a "
            f"whole number from 0 upwards"
        )


def _instead_of_run(workdir: Path) -> str:
    """What to take instead of the work folder of a training run."""
    model, earlier = workdir / "model", workdir / "autoencoder"
    if (model / "config.json").is_file():
        return f"{workdir} is the work folder of a training run; its model is {model}"
    what = "has no checkpoint of the model yet" if earlier.is_dir() else "is not finished"
    return (
        f"{workdir} is the work folder of a training run that {what}; `caphuman export {workdir} "
        "OUT` makes a model folder of its newest checkpoint"
    )
