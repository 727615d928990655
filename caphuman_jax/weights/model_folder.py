"""Model folders: config.json and one safetensors file for each network. docs/notes/model-folder.md
describes the format.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io import atomic, finite, safetensors_file
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import guarded
from caphuman_jax.weights import folder_description, folder_files, hub

_READERS = 4  # threads for one network: new memory and the check for NaN take as long as the disk


def find_model(name_or_path: str | os.PathLike, download: bool = False) -> Path:
    """The folder of a shipped model ("mini"), of a path, or of a name of the hub ("ORG/NAME") in
    its local cache.

    download: fetch a name of the hub that the cache does not hold. Raises ModelFolderError that
    says what there is instead.
    """
    if isinstance(name_or_path, str) and not name_or_path.strip():
        raise ModelFolderError(
            "the model must not be empty; name a shipped model or a model folder"
        )
    shipped = _shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if hub.is_name(name_or_path):
        try:
            path = hub.locate(name_or_path, download)
        except ModelFolderError as error:
            known = ", ".join(shipped)
            raise ModelFolderError(
                f"no model named {name_or_path}: {error}; shipped models: {known}"
            ) from error
    path = folder_files.snapshot(path)
    if (path / "model_index.json").is_file():
        raise ModelFolderError(
            f"{name_or_path} is a diffusers folder; make a model folder of it: caphuman import OUT "
            f"--base {name_or_path}, with --caphuman or --init"
        )
    if os.path.exists(path / "config.json"):  # what is not a regular file is refused by its reader
        return path
    if path.is_dir():
        raise ModelFolderError(f"{path} is not a model folder: it has no config.json")
    known = ", ".join(shipped) or "none"
    raise ModelFolderError(
        f"no model named {name_or_path} and no folder at that path; shipped models: {known}"
    )


def save_model(
    path: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: Any = np.float32,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    more: Callable[[Path], Iterable[Path]] | None = None,
) -> None:
    """Write a model folder.

    params: {network: nested dicts of float arrays}; dtype: what they are stored as, None: as they
    are; metadata: JSON values kept in config.json (training steps, license …). The folder appears
    whole or not at all; `more` is called with it before it appears, to add other files, and returns
    their paths. `overwrite`
    replaces an existing model folder and keeps files in it that are not ours (a model card,
    notices). Raises ModelFolderError where the folder exists, or a weight does not fit into
    `dtype`."""
    with writing(path, overwrite=overwrite) as folder:
        manifest = {
            name: _write_network(folder, name, tree, dtype) for name, tree in params.items()
        }
        written = write_description(folder, config, manifest, metadata)
        if more is not None:
            written += more(folder)
        check_written(folder, written)


@contextmanager
def writing(
    path: str | Path,
    *,
    overwrite: bool = False,
    kind: str = "model folder",
    marker: str = "config.json",
    ours: Callable[[Path], bool] | None = None,
) -> Iterator[Path]:
    """An empty folder to write into; it becomes `path` if the block ends without an exception and
    is removed otherwise.

    marker: the file by which an existing folder is known to be of this kind, and may be replaced
    with `overwrite`; ours: whether a path in it (relative) is of what is replaced, by default the
    files that config.json names. All others are kept. Raises ModelFolderError where something is in
    the way."""
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise ModelFolderError(f"{path} exists already; choose another folder or add --overwrite")
    if path.exists() and not (path / marker).is_file():
        raise ModelFolderError(f"{path} exists and is not a {kind}; it is left as it is")

    with atomic.folder(path) as part:
        yield part
        if path.exists() and not overwrite:
            raise ModelFolderError(
                f"{path} exists by now: another program has written it; it is left as it is"
            )
        if path.exists():
            _carry_over(path, part, ours or _named_by(path))


def check_written(folder: Path, written: Iterable[Path]) -> None:
    """Raises FileNotFoundError where something removed one of the files that were written into a
    temporary folder.
    """
    atomic.check_there(folder, [path.relative_to(folder) for path in written])


def write_description(
    folder: Path,
    config: ModelConfig,
    manifest: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> list[Path]:
    """config.json. manifest: what `safetensors_file.write` gave, for each network. Returns the
    paths of config.json and of the networks.
    """
    document = {
        "format": folder_description.FORMAT,
        "format_version": folder_description.FORMAT_VERSION,
        "config": config.to_dict(),
        "files": dict(manifest),
        "metadata": dict(metadata or {}),
    }
    path = folder / "config.json"
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    return [path, *(folder / entry["file"] for entry in manifest.values())]


def tokenizer_files(path: str | Path) -> tuple[Path, Path] | None:
    """A model folder's own tokenizer, (vocab.json, merges.txt) in the form of transformers; None:
    CLIP's, which comes with the package.
    """
    files = Path(path) / "tokenizer" / "vocab.json", Path(path) / "tokenizer" / "merges.txt"
    return files if all(file.is_file() for file in files) else None


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a model folder.

    Raises:
        ModelFolderError: see `ModelConfig.from_dict`; also for a head model, sampler, spacing or
            noise schedule that there is not, and a recognizer whose vectors the projector cannot
            take.
    """
    try:
        document = folder_description.read_document(Path(path))
        folder_description.check_complete(document["config"])
        config = ModelConfig.from_dict(document["config"])
        folder_description.check_names(config, document["files"])
    except ModelFolderError as error:
        if not str(error).startswith("config"):
            raise
        raise ModelFolderError(f"{Path(path) / 'config.json'}: {error}") from error
    return config


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_model` was given as `metadata`. Raises ModelFolderError."""
    return folder_description.read_document(Path(path))["metadata"]


def load_params(
    path: str | Path, shapes: Mapping[str, Any], *, dtype: Any = np.float32, verify: bool = True
) -> dict[str, Any]:
    """The weights of the networks named in `shapes`, as nested dicts of numpy arrays of `dtype`;
    None: of the types that they are stored in.

    shapes: {network: nested dicts with `.shape` leaves}, such as `jax.ShapeDtypeStruct`; networks
    that the folder has and `shapes` does not name are not read. `verify` compares each file with
    the checksum in config.json. Raises ModelFolderError for a missing or damaged file, and with
    every missing, surplus or misshapen weight named."""
    path = Path(path)
    manifest = folder_description.read_document(path)["files"]
    absent = [name for name in shapes if name not in manifest]
    if absent:
        raise ModelFolderError(
            f"{path} has no {', '.join(absent)}; it has {', '.join(manifest) or 'no networks'}"
        )
    if verify:
        for name in shapes:
            _check_sum(path, manifest[name])
    return {
        name: _read_network(path / manifest[name]["file"], tree, dtype)
        for name, tree in shapes.items()
    }


def verify_model(path: str | Path) -> None:
    """Compare every file of a model folder with its checksum. Raises ModelFolderError for the first
    that differs.
    """
    for entry in folder_description.read_document(Path(path))["files"].values():
        _check_sum(Path(path), entry)


def check_network(path: str | Path, name: str, shapes: Any) -> None:
    """Compare the names and shapes of a network's weights with `shapes` (nested dicts with `.shape`
    leaves) and the file's size with config.json; no weight is read. Raises ModelFolderError."""
    path, entry = Path(path), file_entries(path).get(name)
    if entry is None:
        raise ModelFolderError(f"{path} has no {name}")
    file = path / entry["file"]
    if not file.is_file():
        raise ModelFolderError(f"{file} is missing")
    if file.stat().st_size != entry.get("bytes", file.stat().st_size):
        raise ModelFolderError(f"{file} has {file.stat().st_size:,} bytes, not {entry['bytes']:,}")

    def read():
        stored = File(file)
        try:
            return {
                key: tuple(tensor.shape)
                for key, tensor in safetensors_file.read_header(stored)[0].items()
            }
        finally:
            stored.close()

    wanted = {key: tuple(leaf.shape) for key, leaf in _flatten(shapes).items()}
    _check_shapes(file, wanted, guarded(file, read))


def file_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    """{network: its "file", "sha256" and "bytes"} of config.json. Raises ModelFolderError."""
    return folder_description.read_document(Path(path))["files"]


def verify_network(path: str | Path, name: str) -> None:
    """Compare one network's file with its checksum. Raises ModelFolderError."""
    _check_sum(Path(path), folder_description.read_document(Path(path))["files"][name])


def _shipped_models() -> dict[str, Path]:
    assets = Path(str(files("caphuman_jax") / "assets"))
    return {config.parent.name: config.parent for config in sorted(assets.glob("*/config.json"))}


def _write_network(folder: Path, name: str, tree: Any, dtype: Any) -> dict[str, Any]:
    leaves = _flatten(tree)
    specs = {
        key: (np.dtype(dtype or value.dtype), tuple(value.shape)) for key, value in leaves.items()
    }
    arrays = (
        cast(np.asarray(leaves[key]), specs[key][0], f"{name}: {key}")
        for key in safetensors_file.order(specs)
    )
    return safetensors_file.write(folder / f"{name}.safetensors", specs, arrays)


def cast(value: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """`value` as `dtype`. Raises ModelFolderError where finite numbers are too large for it."""
    if not finite.all_finite(value):
        raise ModelFolderError(
            f"{name} holds numbers that are not finite (NaN or infinity), as after a training that "
            f"diverged; take another checkpoint"
        )
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        stored = value.astype(dtype, order="C")
    narrow = np.dtype(dtype).itemsize < value.dtype.itemsize or np.dtype(dtype) == np.float16
    if (
        narrow
        and not np.isfinite(stored.astype(np.float32, copy=False)).all()
        and np.isfinite(value.astype(np.float32)).all()
    ):
        raise ModelFolderError(f"{name} has values too large for {np.dtype(dtype).name}")
    return stored


@contextmanager
def stored_networks(path: str | Path) -> Iterator[dict[str, dict[str, safetensors_file.Tensor]]]:
    """{network: {dotted path: tensor with .shape, .dtype and .read()}} of a model folder, each
    tensor read when it is asked for.
    """
    path = Path(path)
    files: list[File] = []

    def tensors(file):
        files.append(File(file))
        return safetensors_file.read_header(files[-1])[0]

    try:
        entries = folder_description.read_document(path)["files"]
        yield {
            name: guarded(path / entry["file"], lambda file=path / entry["file"]: tensors(file))
            for name, entry in entries.items()
        }
    finally:
        for file in files:
            file.close()


def _read_network(file: Path, tree: Any, dtype: Any) -> Any:
    wanted = _flatten(tree)

    def read():
        stored = File(file)
        try:
            tensors, _ = safetensors_file.read_header(stored)
            _check_shapes(
                file,
                {key: tuple(leaf.shape) for key, leaf in wanted.items()},
                {key: t.shape for key, t in tensors.items()},
            )

            def one(key):
                array = _finite(file.stem, key, tensors[key].read())
                return array.astype(dtype or tensors[key].dtype, copy=False)

            with ThreadPoolExecutor(_READERS) as pool:
                return dict(zip(wanted, pool.map(one, wanted)))
        finally:
            stored.close()

    return _unflatten(tree, guarded(file, read))


def _finite(network: str, name: str, array: np.ndarray) -> np.ndarray:
    """The array itself. Raises ModelFolderError where it holds NaN or infinity."""
    if not finite.all_finite(array):
        raise ModelFolderError(
            f"{network}: {name} holds numbers that are not finite (NaN or infinity), as after a "
            f"training that diverged; import or train the model again"
        )
    return array


def _check_shapes(file: Path, wanted: dict[str, tuple], found: dict[str, tuple]) -> None:
    problems = [f"missing {key} {wanted[key]}" for key in wanted if key not in found]
    problems += [f"surplus {key} {found[key]}" for key in found if key not in wanted]
    problems += [
        f"{key} is {found[key]}, not {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    if problems:
        raise ModelFolderError(f"{file} does not fit its configuration: " + "; ".join(problems))


def _check_sum(folder: Path, entry: dict[str, Any]) -> None:
    file = folder / entry["file"]
    if not file.is_file():
        raise ModelFolderError(f"{file} is missing")
    if _sha256(file) != entry["sha256"]:
        raise ModelFolderError(
            f"{file} is damaged or was changed: its checksum is not the one in config.json"
        )


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _named_by(folder: Path) -> Callable[[Path], bool]:
    named = {entry["file"] for entry in folder_description.read_document(folder)["files"].values()}
    return lambda path: str(path) in named


def _carry_over(old: Path, new: Path, ours: Callable[[Path], bool]) -> None:
    """Copy what the new folder lacks and was not ours in the old one."""
    for item in sorted(old.rglob("*")):
        path = item.relative_to(old)
        if item.is_dir() and not item.is_symlink():
            continue
        if not ours(path) and not os.path.lexists(new / path):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(item, new / path, follow_symlinks=False)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts → {"a.b.c": leaf}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _unflatten(tree: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """{"a.b.c": leaf} → the nesting of `tree`."""
    if not isinstance(tree, Mapping):
        return values[prefix]
    return {
        key: _unflatten(value, values, f"{prefix}.{key}" if prefix else str(key))
        for key, value in tree.items()
    }
