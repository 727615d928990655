"""Weights of the Hugging Face hub: names "ORG/NAME" are looked up in its local cache, and fetched
only if that is asked for.

`huggingface_hub` does both, with its own settings: the cache's folder (HF_HOME), the token
(HF_TOKEN or `hf auth login`), a mirror (HF_ENDPOINT)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import folder_files

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?")
"""ORG/NAME, or ORG/NAME@REVISION."""
_SETTINGS = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_SUFFIXES = (".safetensors", ".bin", ".msgpack", ".ckpt", ".pt", ".pth")


def is_name(given: str | os.PathLike) -> bool:
    """Whether something that is neither a file nor a folder may be a name of the hub."""
    return bool(_NAME.fullmatch(os.fspath(given))) and not Path(given).exists()


def locate(given: str | os.PathLike, download: bool = False) -> Path:
    """A file or folder: of a path, of a folder of the hub's cache, or of a name of the hub.

    Args:
        given: a path, "ORG/NAME" or "ORG/NAME@REVISION".
        download: fetch what the cache lacks.

    Raises:
        ModelFolderError: a name that the cache does not hold, or that cannot be fetched.
    """
    if not is_name(given):
        return folder_files.snapshot(Path(given).expanduser())
    name, _, revision = str(given).partition("@")
    if download:
        return _fetch(name, revision or None)
    # Takes a tenth of a second, which a path does not need.
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if revision:
        branch = folder / "refs" / revision
        commit = branch.read_text().strip()[:64] if branch.is_file() else revision
        found = folder / "snapshots" / commit
    else:
        found = folder_files.snapshot(folder)
    if not found.is_dir():
        raise ModelFolderError(
            f"there is no file or folder {given}, and the hub's cache does not hold it; --download "
            f"(in Python download=True) fetches it"
        )
    return found


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_wanted(name, revision))
        )
    except Exception as error:  # noqa: BLE001 - of the hub, its HTTP library, the network, the disk
        text = " ".join(str(error).split())[:200]
        raise ModelFolderError(f"{name} cannot be fetched from the hub: {text}") from error


def _wanted(name: str, revision: str | None) -> list[str]:
    """Which files of a repository are fetched: settings, and of each folder the weights that would
    be read there.
    """
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(name, revision=revision)
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, file_name = file.rpartition("/")
        folders.setdefault(folder, []).append(file_name)
    # A folder of a pipeline's parts may hold all of it as one file too, which is not needed.
    parts = {"unet", "vae", "text_encoder"} <= set(folders)
    wanted = list(_SETTINGS)
    for folder, names in folders.items():
        if folder == "" and parts:
            continue
        if folder in ("safety_checker", "feature_extractor"):
            continue
        chosen = folder_files.choose(names)
        for index in [one for one in chosen if one.endswith(".json")]:
            stem = re.split(r"[.]", index)[0]
            chosen += [one for one in names if one.startswith(stem) and "-of-" in one]
        if not chosen and not parts:
            chosen = [one for one in names if one.endswith(_SUFFIXES)]
        wanted += [f"{folder}/{one}".lstrip("/") for one in chosen]
    return wanted
