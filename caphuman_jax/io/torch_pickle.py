"""Files of torch.save, of both forms, read without PyTorch and without running what is in them.

* since torch 1.6: a zip archive; NAME/data.pkl is a pickle that refers to storages, NAME/data/KEY
holds one storage.
* before (and in many files that are still about, whatever they are called: 79999_iter.pth,
  deca_model.tar): magic number, protocol number, system information, the pickle and the list of
  storage keys, each a pickle, then the raw storages.

Storages stay on disk; a tensor reads its own part when it is asked for.
"""

from __future__ import annotations

import io
import math
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from caphuman_jax.io import pickles
from caphuman_jax.io.pickle_reader import Damaged, Name, Refused, load, mapped

# the magic number as pickles of all binary protocols write it
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_PROTOCOL = 1001
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


class File:
    """An open file that is read in pieces."""

    def __init__(self, path: Path):
        self.path = path
        self.stream = io.FileIO(path)
        self.size = path.stat().st_size
        self.lock = threading.Lock()

    def read(self, start: int, length: int) -> np.ndarray:
        """Bytes as (length,) uint8. Raises Damaged where the file ends before."""
        if start < 0 or length < 0 or start + length > self.size:
            raise Damaged("it ends before its last tensor")
        data = np.empty(length, np.uint8)
        view, done = data.data, 0
        with self.lock:
            self.stream.seek(start)
            while done < length:
                count = self.stream.readinto(view[done:])
                if not count:
                    raise Damaged("it ends before its last tensor")
                done += count
        return data

    def close(self) -> None:
        self.stream.close()

    def __del__(self):
        if hasattr(self, "stream"):
            self.close()


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
    storage: _TypedStorage

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
class _TypedStorage:
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
        not isinstance(storage, _TypedStorage)
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
        raise Damaged("a tensor too large to be true")
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


def _typed_storage(pid: Any, found: dict[str, Storage]) -> _TypedStorage:
    """What a pickle's reference ("storage", type, key, location, count[, view]) means."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        what = (
            pid[0] if type(pid) is tuple and pid and isinstance(pid[0], str) else type(pid).__name__
        )
        raise Refused(f"it refers to something that is not a storage ({what[:40]})")
    _, kind, key, _, count, *view = pid
    if isinstance(key, int):
        key = str(key)
    value = kind.value if isinstance(kind, Name) else None
    if (
        not isinstance(key, str)
        or type(count) is not int
        or count < 0
        or not (value == "untyped" or isinstance(value, np.dtype))
    ):
        raise Damaged("a storage without type, key or size")
    storage = _TypedStorage(None if isinstance(value, str) else value, count, key, found)
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


def read_zip(file: File) -> Any:
    """The content of a zip of torch.save, with `Tensor` for every tensor. Raises Damaged, Refused,
    or zipfile's errors.
    """
    with zipfile.ZipFile(file.path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise Refused("two parts of it have one name")
        roots = [
            name.removesuffix("data.pkl")
            for name in entries
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if any(name.endswith("/constants.pkl") for name in entries):
            raise Refused("it is a TorchScript program; save its state_dict instead")
        if len(roots) != 1:
            raise Damaged("a zip archive, but not one of torch.save")
        root = roots[0]
        if (
            f"{root}byteorder" in entries
            and _entry(file, entries[f"{root}byteorder"]).read(0, 6).tobytes() != b"little"
        ):
            raise Refused("its numbers are big-endian; save it again on an ordinary machine")
        found = {
            name.removeprefix(f"{root}data/"): _entry(file, entry)
            for name, entry in entries.items()
            if name.startswith(f"{root}data/")
        }
        described = _entry(file, entries[f"{root}data.pkl"])
    needed: dict[str, int] = {}

    def storage(pid):
        made = _typed_storage(pid, found)
        size = pid[4] * (made.dtype.itemsize if made.dtype is not None else 1)
        if (
            made.key not in found
            or found[made.key].length < size
            or needed.setdefault(made.key, size) != size
        ):
            raise Damaged(f"storage {made.key[:40]} is missing or cut short")
        return made

    data = described.read(0, described.length).tobytes()
    return load(io.BytesIO(data), len(data), NAMES, storage)


def _entry(file: File, entry: zipfile.ZipInfo) -> Storage:
    """Where a zip's entry lies in the file. Entries of torch.save are never compressed; one that is
    could be a bomb.
    """
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise Refused("a part of it is compressed")
    if entry.flag_bits & 1:
        raise Refused("a part of it is encrypted")
    signature, name, extra = struct.unpack("<4s22xHH", file.read(entry.header_offset, 30).tobytes())
    start = entry.header_offset + 30 + name + extra
    if signature != b"PK\x03\x04" or start + entry.file_size > file.size:
        raise Damaged("it ends before its last part")
    return Storage(file, start, entry.file_size, entry.CRC or None)  # 0: written without checksums


def read_legacy(file: File) -> Any:
    """The content of an old torch.save file, with `Tensor` for every tensor. Raises Damaged,
    Refused and what pickles lead to.
    """
    with open(file.path, "rb") as raw:
        stream = mapped(raw)

        def part(persistent=None):
            return load(stream, file.size, NAMES, persistent)

        part()  # the magic number, by which this function was chosen
        if part() != _LEGACY_PROTOCOL:
            raise Refused("it has another version of torch's old form")
        system = part()
        if type(system) is not dict or system.get("little_endian") is not True:
            raise Refused("its numbers are big-endian; save it again on an ordinary machine")
        sizes: dict[str, tuple[int, int]] = {}
        found: dict[str, Storage] = {}

        def storage(pid):
            made = _typed_storage(pid, found)
            size = (pid[4], made.dtype.itemsize if made.dtype is not None else 1)
            if sizes.setdefault(made.key, size) != size:
                raise Damaged("two sizes of one storage")
            return made

        content = part(storage)
        keys = part()
        if type(keys) is not list or sorted(map(str, keys)) != sorted(sizes):
            raise Damaged("the list of its storages is wrong")
        at = stream.tell()
    for key in map(str, keys):  # each: number of elements, then the elements
        count, width = sizes[key]
        if int(file.read(at, 8).view("<i8")[0]) != count or at + 8 + count * width > file.size:
            raise Damaged(f"storage {key[:40]} is missing or cut short")
        found[key] = Storage(file, at + 8, count * width)
        at += 8 + count * width
    if at != file.size:
        raise Damaged("there is more in it than its tensors")
    return content
