"""`open_checkpoint`: the weights of any file that people have, by name, each read when it is asked
for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io import json_reader, msgpack_file, pickles, safetensors_file, torch_pickle
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import NOT_BUILT, Damaged, Name, Refused, guarded, unknown_name
from caphuman_jax.weights import flax_names, folder_files

_MOST_ENTRIES = 1_000_000
_DEEPEST = 32
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")  # PNG, JPEG, GIF


class Checkpoint(Mapping[str, np.ndarray]):
    """Name → array, read at each look-up; close it, or use it in `with`.

    path: the file; files: all that belong to it; format: "safetensors", "torch", "old torch",
    "flax" (with the names and layouts of PyTorch) or "pickle"; metadata: a safetensors file's;
    extra: all but arrays (numbers, texts), by dotted name. bfloat16 is `ml_dtypes.bfloat16`."""

    def __init__(
        self,
        path: Path,
        format: str,
        tensors: dict[str, Any],
        extra: dict[str, Any],
        metadata: dict[str, Any],
        files: list,
    ):
        self.path, self.format, self.extra, self.metadata = path, format, extra, metadata
        self.files = [file.path for file in files]
        self._tensors, self._open = tensors, files

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        if isinstance(tensor, np.ndarray):
            return tensor
        return guarded(self.path, tensor.read)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype:
        """A tensor's type, without reading it."""
        return self._tensors[name].dtype

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        for file in self._open:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def open_checkpoint(path: str | Path, part: str | None = None) -> Checkpoint:
    """Open a weight file: safetensors (or the index of a sharded one), .ckpt/.pt/.pth/.bin of
    torch.save in both of its forms, Flax's .msgpack, a pickle of arrays; or a folder of diffusers
    or transformers (or of the hub's cache) that holds one.

    Nested dicts have dotted names. part: the dotted name of the dict to open ("E_flame"), "" for
    all; by default "state_dict" where there is one, else all. Nothing in a pickle is run. Raises
    ModelFolderError: missing, damaged, refused (by name), no such part."""
    path = Path(path).expanduser()
    if path.is_dir():
        files = folder_files.weights_in(folder_files.snapshot(path))
        if len(files) > 1:
            return guarded(path, lambda: _open_shards(files, part))
        path = files[0]
    if re.search(r"\.index\.([\w-]+\.)?json$", path.name):
        return guarded(path, lambda: _open_sharded(path, part))
    return guarded(path, lambda: _open_file(path, part))


def _open_file(path: Path, part: str | None) -> Checkpoint:
    file = File(path)
    try:
        start = file.read(0, min(64, file.size)).tobytes()
        metadata: dict[str, Any] = {}
        if start[:4] == b"PK\x03\x04":
            kind, content = "torch", torch_pickle.read_zip(file)
        elif torch_pickle.LEGACY_MAGIC in start[:32]:
            kind, content = "old torch", torch_pickle.read_legacy(file)
        elif safetensors_file.looks_like(start):
            kind, (content, metadata) = "safetensors", safetensors_file.read_header(file)
        elif msgpack_file.looks_like(start):
            kind, content = "flax", msgpack_file.read_tree(file)
            content = content["params"] if set(content) == {"params"} else content
        elif start.startswith(b"version https://git-lfs"):
            raise ModelFolderError(
                f"{path} is only git's pointer to the weights; fetch them with: git lfs pull"
            )
        elif start[:4] == b"GGUF":
            raise ModelFolderError(
                f"{path} is a GGUF file of quantized weights; take the model as safetensors"
            )
        elif start.lstrip()[:1] == b"<":
            raise ModelFolderError(f"{path} is a web page, not weights; the download went wrong")
        elif start.startswith(_PICTURES):
            raise ModelFolderError(f"{path} is a picture, not weights")
        elif not start:
            raise ModelFolderError(f"{path} is empty")
        else:
            kind, content = "pickle", pickles.read_pickle(path)
        tensors, extra = _named(content, part)
        if kind == "flax":
            tensors = flax_names.to_pytorch(tensors)
    except BaseException:
        file.close()
        raise
    return Checkpoint(path, kind, tensors, extra, metadata, [file])


def _open_sharded(path: Path, part: str | None) -> Checkpoint:
    index = json_reader.read(path)
    places = index["weight_map"]
    names = sorted(set(places.values()))
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise Damaged("it points outside of its folder")
    shards = {}
    try:
        for name in names:
            shards[name] = open_checkpoint(path.parent / name, part)
        tensors = {}
        if all(shard.format == "flax" for shard in shards.values()):
            places = {
                flax_names.pytorch_name(name.replace("/", ".")): place
                for name, place in places.items()
            }
        for name, place in places.items():
            if name not in shards[place]:
                raise Damaged(f"{place} lacks {name}")
            tensors[name] = shards[place]._tensors[name]
        surplus = [name for shard in shards.values() for name in shard if name not in tensors]
        if surplus:
            raise Damaged(f"tensors that it does not name: {', '.join(surplus[:5])}")
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise
    first = next(iter(shards.values()))
    return Checkpoint(
        path,
        first.format,
        tensors,
        {},
        index.get("metadata") or {},
        [file for shard in shards.values() for file in shard._open],
    )


def _open_shards(paths: list[Path], part: str | None) -> Checkpoint:
    """Shards without an index."""
    shards: list[Checkpoint] = []
    tensors: dict[str, Any] = {}
    try:
        for path in paths:
            shards.append(open_checkpoint(path, part))
            twice = [name for name in shards[-1] if name in tensors]
            if twice:
                raise Damaged(f"{path.name} holds {twice[0]}, which another part holds too")
            tensors |= shards[-1]._tensors
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    files = [file for shard in shards for file in shard._open]
    return Checkpoint(paths[0], shards[0].format, tensors, {}, shards[0].metadata, files)


def _named(content: Any, part: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested containers → ({dotted name: tensor}, {dotted name: anything else})."""
    if part is None:
        part = (
            "state_dict"
            if isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
            else ""
        )
    picked = content
    for step in filter(None, part.split(".")):
        if not isinstance(picked, dict) or step not in picked:
            there = (
                ", ".join(str(key) for key in list(picked)[:20])
                if isinstance(picked, dict)
                else "no dict"
            )
            raise Refused(f"it has no part {part}; it has {there}")
        picked = picked[step]
    tensors: dict[str, Any] = {}
    extra: dict[str, Any] = {}

    def walk(value, name, depth):
        if depth > _DEEPEST or len(tensors) + len(extra) > _MOST_ENTRIES:
            raise Refused("its containers are nested without end")
        if isinstance(value, (dict, list, tuple)) and value:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                key = key.name if isinstance(key, Name) else str(key)
                walk(item, f"{name}.{key}" if name else key, depth + 1)
            return
        unknown = unknown_name(value)
        if unknown is not None:
            raise Refused(f"{name or 'all of it'} is made of {unknown}, which {NOT_BUILT}")
        place = tensors if hasattr(value, "read") or isinstance(value, np.ndarray) else extra
        if name in place:
            raise Refused(f"two of its entries are named {name}")
        place[name] = value

    walk(picked, "", 0)
    extra.pop("", None)
    if picked is not content:  # next to the chosen part: listed, not opened
        extra |= {
            str(key): value
            for key, value in content.items()
            if isinstance(value, (int, float, str))
        }
    return tensors, extra
