"""PyTorch's tensors and storages as they are described in pickles. Storages stay on disk; a tensor
reads its own part when it is asked for.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from caphuman_jax.io import pickles
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import NOT_BUILT, Damaged, Name, Refused, unknown_name

_LARGEST_EXPANDED = 2**20  # elements of a tensor that repeats its storage
_CHUNK = 2**23

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


class Storage:
    """Numbers in a row, somewhere in a file. `crc`: of all its bytes, checked before any of them is
    given away.
    """

    def __init__(self, file: File, start: int, length: int, crc: int | None = None):
        self.file, self.start, self.length, self.crc = file, start, length, crc

    def read(self, start: int, length: int) -> np.ndarray:
        if start + length > self.length:
            raise Damaged("a tensor larger than its storage")
        if self.crc is not None and (start, length) != (0, self.length):
            crc = 0
            for at in range(0, self.length, _CHUNK):
                part = self.file.read(self.start + at, min(_CHUNK, self.length - at))
                crc = zlib.crc32(part.data, crc)
            self._check(crc)
        data = self.file.read(self.start + start, length)
        if self.crc is not None:
            self._check(zlib.crc32(data.data))
        return data

    def _check(self, crc: int) -> None:
        if crc != self.crc:
            raise Damaged("the checksum of a tensor is wrong")
        self.crc = None  # once is enough


@dataclass
class Tensor:
    """A tensor that is still on disk. `strides` and `offset` count elements of `storage`, which
    begins `first` elements into it.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: TypedStorage

    def read(self) -> np.ndarray:
        """The values, in C order."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        raw = self.storage.located().read(
            (self.storage.first + self.offset) * self.dtype.itemsize, extent * self.dtype.itemsize
        )
        flat = raw.view(self.dtype)
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        ).reshape(self.shape)


@dataclass
class TypedStorage:
    dtype: np.dtype | None  # None: untyped, counted in bytes
    count: int
    key: str
    found: dict[str, Storage]
    first: int = 0

    def located(self) -> Storage:
        return self.found[self.key]


def _tensor(
    reader,
    storage,
    offset,
    size,
    strides,
    requires_grad=False,
    hooks=None,
    metadata=None,
    *,
    dtype=None,
) -> Tensor:
    if (
        not isinstance(storage, TypedStorage)
        or type(size) is not tuple
        or type(strides) is not tuple
        or len(size) != len(strides)
    ):
        raise Damaged("a tensor without storage, size or strides")
    if metadata:
        raise Refused("it has a tensor with flags (conjugate, negative)")
    if len(size) > 32 or any(type(n) is not int or n < 0 for n in (offset, *size, *strides)):
        raise Damaged("a tensor of negative size or stride")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise Damaged("a tensor without type")
    count = storage.count if storage.dtype is not None else storage.count // dtype.itemsize
    if 0 not in size:
        last = offset + sum((n - 1) * s for n, s in zip(size, strides, strict=True))
        if last >= count or math.prod(size) > max(count, _LARGEST_EXPANDED):
            raise Damaged("a tensor larger than its storage")
    elif math.prod(n for n in size if n) > 2**40:
        raise Damaged("an implausibly large tensor")
    return Tensor(dtype, size, strides, offset, storage)


def _tensor_v3(reader, storage, offset, size, strides, requires_grad, hooks, dtype, metadata=None):
    if not isinstance(dtype, Name) or not isinstance(dtype.value, np.dtype):
        raise Damaged("a tensor without type")
    return _tensor(reader, storage, offset, size, strides, dtype=dtype.value, metadata=metadata)


def _parameter(reader, data, requires_grad=True, hooks=None, state=None):
    if not isinstance(data, Tensor):
        raise Damaged("a parameter that is not a tensor")
    return data


def _from_type(reader, function, kind, args, state):
    """A tensor with attributes; they are left out."""
    result = reader.invoke(function, args)
    if not isinstance(result, Tensor):
        raise Refused("it rebuilds something that is not a tensor")
    return result


def _size(reader, sizes=()):
    if type(sizes) not in (list, tuple) or any(type(n) is not int for n in sizes):
        raise Damaged("a size of something else than integers")
    reader.spend(16 * len(sizes))
    return tuple(sizes)


def _device(reader, kind, index=None):
    return f"{str(kind)[:20]}" if index is None else f"{str(kind)[:20]}:{int(index)}"


def _names() -> dict[tuple[str, str], Name]:
    calls = {
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        ("torch", "Size"): _size,
        ("torch", "device"): _device,
    }
    table = {key: Name(".".join(key), call) for key, call in calls.items()}
    for key in (
        ("torch", "Tensor"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.nn.parameter", "Buffer"),
    ):
        table[key] = Name(".".join(key))
    aliases = {
        "float": "float32",
        "double": "float64",
        "half": "float16",
        "long": "int64",
        "int": "int32",
        "short": "int16",
    }
    for name, kind in {**{name: name for name in DTYPES}, **aliases}.items():
        table["torch", name] = Name(f"torch.{name}", value=np.dtype(DTYPES[kind]))
    for name, kind in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            table[module, f"{name}Storage"] = Name(
                f"{module}.{name}Storage", value=np.dtype(DTYPES[kind])
            )
    for module in ("torch", "torch.storage"):
        table[module, "UntypedStorage"] = Name(f"{module}.UntypedStorage", value="untyped")
    return pickles.NAMES | table


NAMES = _names()
"""What a torch file may name: what any pickle may, tensors, parameters, sizes, types and storages.
"""


def typed_storage(pid: Any, found: dict[str, Storage]) -> TypedStorage:
    """What a pickle's reference ("storage", type, key, location, count[, view]) means."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        what = (
            pid[0] if type(pid) is tuple and pid and isinstance(pid[0], str) else type(pid).__name__
        )
        raise Refused(f"it refers to something that is not a storage ({what[:40]})")
    _, kind, key, _, count, *view = pid
    if isinstance(key, int):
        key = str(key)
    unknown = unknown_name(kind)
    if unknown is not None:
        raise Refused(f"it names {unknown}, which {NOT_BUILT}")
    value = kind.value if isinstance(kind, Name) else None
    if (
        not isinstance(key, str)
        or type(count) is not int
        or count < 0
        or not (value == "untyped" or isinstance(value, np.dtype))
    ):
        raise Damaged("a storage without type, key or size")
    storage = TypedStorage(None if isinstance(value, str) else value, count, key, found)
    if (
        view and view[0] is not None
    ):  # (key, first element, number of elements) of a part of a storage
        if (
            storage.dtype is None
            or type(view[0]) is not tuple
            or len(view[0]) != 3
            or any(type(n) is not int or n < 0 for n in view[0][1:])
        ):
            raise Damaged("a part of a storage without place")
        storage.first, storage.count = view[0][1:]
        if storage.first + storage.count > count:
            raise Damaged("a part of a storage outside of it")
    return storage
