"""safetensors files tensor by tensor, so that neither reading nor writing holds more than one of
them.

Format: 8 bytes little-endian length of the header, the header (JSON: name → dtype, shape,
data_offsets), the tensors without gaps. https://huggingface.co/docs/safetensors"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from caphuman_jax.io import json_reader
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import Damaged

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
}
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as in the safetensors library
_CHUNK = 2**24


class Tensor:
    """One tensor of a file, still on disk."""

    def __init__(self, file: File, dtype: np.dtype, shape: tuple[int, ...], start: int):
        self.file, self.dtype, self.shape, self.start = file, dtype, shape, start

    def read(self) -> np.ndarray:
        """The values."""
        raw = self.file.read(self.start, math.prod(self.shape) * self.dtype.itemsize)
        return raw.view(self.dtype).reshape(self.shape)


def looks_like(start: bytes) -> bool:
    """Whether a file that begins so is safetensors."""
    return (
        len(start) >= 9
        and start[8:9] == b"{"
        and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER
    )


def read_header(file: File) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{name: tensor} and the file's metadata. Raises Damaged where header and file disagree."""
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > _LONGEST_HEADER:
        raise Damaged("its header is implausibly long")
    header = json_reader.parse(file.read(8, length).tobytes(), pairs_hook=_unique)
    if not isinstance(header, dict):
        raise Damaged("its header is not a JSON object")
    metadata = header.pop("__metadata__", {}) or {}
    tensors, places = {}, []
    for name, entry in header.items():
        shape, offsets, code = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
        if code not in DTYPES:
            raise Damaged(f"{name} is of an unknown type {str(code)[:20]}")
        if (
            not isinstance(shape, list)
            or not isinstance(offsets, list)
            or len(offsets) != 2
            or len(shape) > 32
        ):
            raise Damaged(f"{name} has no shape or no place")
        if any(type(n) is not int or n < 0 for n in (*shape, *offsets)):
            raise Damaged(f"{name} has a negative size")
        dtype = np.dtype(DTYPES[code])
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise Damaged(f"{name} does not have the size that its shape says")
        tensors[name] = Tensor(file, dtype, tuple(shape), 8 + length + offsets[0])
        places.append(tuple(offsets))
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise Damaged("its tensors overlap or have gaps between them")
        end = stop
    if 8 + length + end != file.size:
        raise Damaged(f"it has {file.size} bytes where its header says {8 + length + end}")
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise Damaged("two tensors have one name")
    return entries


def order(specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> list[str]:
    """Names in the order of `write`: wide types first, so that each tensor is aligned to its own
    width.
    """
    return sorted(specs, key=lambda name: (-np.dtype(specs[name][0]).itemsize, name))


def write(
    path: Path,
    specs: Mapping[str, tuple[Any, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write a file; {"file": its name, "sha256": …, "bytes": …}.

    specs: name → (dtype, shape) of everything; arrays: the values, in the order that `order(specs)`
    gives, each made when it is its turn. The checksum is taken on the way to the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    names = order(specs)
    for name in names:
        dtype, shape = np.dtype(specs[name][0]), specs[name][1]
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    sha = hashlib.sha256()
    with open(path, "wb") as file:
        written = 0

        def put(data):
            sha.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for name, array in zip(names, arrays, strict=True):
            dtype, shape = np.dtype(specs[name][0]), tuple(specs[name][1])
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{name}: {array.dtype}{array.shape} was announced as {dtype}{shape}"
                )
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, _CHUNK):
                put(flat[start : start + _CHUNK].data)
            written += flat.size
            del array, flat
    return {"file": path.name, "sha256": sha.hexdigest(), "bytes": 8 + len(text) + written}
