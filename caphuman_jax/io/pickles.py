"""Pickles of arrays: what they may name, and `read_pickle`. How they are read without running
anything: pickle_reader.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from caphuman_jax.io.files import open_regular
from caphuman_jax.io.pickle_reader import (
    Built,
    Damaged,
    Inert,
    Name,
    Reader,
    Refused,
    checked_key,
    guarded,
    load,
    mapped,
    unknown_name,
)

_LARGEST_DENSE = 2**30  # bytes of a sparse matrix written out
_MOST_DIMENSIONS = 32


class _DType(Built):
    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def set_state(self, reader, state):
        if (
            type(state) is not tuple
            or len(state) < 5
            or any(part is not None for part in state[2:5])
        ):
            raise Refused("it has arrays of records")
        if state[1] not in ("<", ">", "=", "|"):
            raise Damaged("an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])

    def finish(self, resolve):
        return self.dtype


class _Array(Built):
    value = None

    def set_state(self, reader, state):
        shape, dtype, fortran, data = (
            state[-4:] if type(state) is tuple and len(state) in (4, 5) else (None,) * 4
        )
        self.value = _array(reader, data, dtype, shape, "F" if fortran else "C")

    def finish(self, resolve):
        if self.value is None:
            raise Damaged("an array without content")
        if self.value.dtype == object:  # its elements may not have been complete yet
            resolved = np.empty(self.value.size, object)
            for i, item in enumerate(self.value.ravel()):
                resolved[i] = resolve(item)
            return resolved.reshape(self.value.shape)
        return self.value


class _Instance(Built):
    """An object of a known class, as its attributes."""

    def __init__(self, convert: Callable[[dict], Any]):
        self.convert, self.state = convert, {}

    def set_state(self, reader, state):
        if type(state) is not dict:
            raise Damaged("attributes that are not a dict")
        self.state = state

    def finish(self, resolve):
        return self.convert(resolve(self.state))


def _array(
    reader: Reader, data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]
) -> np.ndarray:
    if not isinstance(dtype, _DType) or type(shape) is not tuple or len(shape) > _MOST_DIMENSIONS:
        raise Damaged("an array without type or shape")
    if any(type(n) is not int or n < 0 for n in shape):
        raise Damaged("an array of negative size")
    dtype, size = dtype.dtype, math.prod(shape)
    if dtype.hasobject:
        if type(data) is not list or len(data) != size:
            raise Refused("it has an array of objects that is not a list of them")
        reader.spend(16 * size)
        array = np.empty(size, object)
        for i, item in enumerate(data):
            array[i] = item
    else:
        if isinstance(data, str):  # bytes of Python 2
            reader.spend(len(data))
            data = data.encode("latin1")
        if not isinstance(data, bytes) or len(data) != size * dtype.itemsize:
            raise Damaged("an array whose data are not as long as its shape says")
        array = np.frombuffer(data, dtype) if data else np.empty(size, dtype)
    return array.reshape(shape, order=order)


def _dtype(reader, code, align=False, copy=False):
    if isinstance(code, Name):
        code = code.value
    if isinstance(code, bytes):
        code = code.decode("ascii")
    if not isinstance(code, str) or not re.fullmatch(
        r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[SUa]\d{1,6}|O8?|bool)", code
    ):
        raise Refused(f"it has arrays of type {str(code)[:40]!r}")
    return _DType(np.dtype("O" if code.startswith("O") else code))


def _scalar(reader, dtype, data=None):
    if data is None:
        raise Refused("it has a scalar of an object")
    return _array(reader, data, dtype, (), "C")[()]


def _reconstruct(reader, kind, shape, typecode):
    name = unknown_name(kind)
    if name is not None:
        return Inert(name)
    if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
        raise Refused("it reconstructs an array of another class")
    return _Array()


def _encode(reader, text, codec="utf-8"):
    if codec not in ("latin1", "latin-1") or not isinstance(text, str):
        raise Refused(f"it encodes text as {str(codec)[:40]!r}")
    reader.spend(len(text))
    return text.encode("latin1")


def _set(reader, items=()):
    if type(items) is not list and items != ():
        raise Refused(f"it makes a set of a {type(items).__name__}")
    reader.spend(64 * len(items))
    return {checked_key(item) for item in items}


def _ordered_dict(reader, items=()):
    if type(items) not in (list, tuple) or not all(
        type(pair) in (list, tuple) and len(pair) == 2 for pair in items
    ):
        raise Refused("it makes an ordered dict of something else than pairs")
    reader.spend(64 * len(items))
    return {checked_key(key): value for key, value in items}


def _default_dict(reader, factory=None, items=()):
    return {}


def _complex(reader, real, imaginary):
    if not all(isinstance(part, (int, float)) for part in (real, imaginary)):
        raise Damaged("a complex number of something else than numbers")
    return complex(real, imaginary)


def _bytes(reader, *args):
    if args == ():
        return b""
    return _encode(reader, *args)


def _reconstructor(reader, kind, base, state):
    """copyreg's way to an object of protocols 0 and 1."""
    name = unknown_name(kind)
    if name is not None:
        return Inert(name)
    if (
        not isinstance(kind, Name)
        or kind.call is None
        or not isinstance(base, Name)
        or base.name != "builtins.object"
        or state is not None
    ):
        raise Refused(f"it makes an object of {getattr(kind, 'name', type(kind).__name__)}")
    return reader.invoke(kind, ())


def _chumpy(state: dict) -> np.ndarray:
    """chumpy's Ch: an array `x` with bookkeeping for gradients."""
    if not isinstance(state.get("x"), np.ndarray):
        raise Damaged("a chumpy array without its values")
    return state["x"]


def _sparse(columns: bool) -> Callable[[dict], np.ndarray]:
    """scipy's compressed columns (or rows) → a dense array; duplicates add up."""

    def dense(state: dict) -> np.ndarray:
        shape = state.get("_shape", state.get("shape"))
        parts = [state.get(name) for name in ("data", "indices", "indptr")]
        arrays = [part for part in parts if isinstance(part, np.ndarray) and part.ndim == 1]
        if (
            type(shape) is not tuple
            or len(shape) != 2
            or any(not isinstance(n, (int, np.integer)) or n < 0 for n in shape)
        ):
            raise Damaged("a sparse matrix without shape")
        if len(arrays) < len(parts) or any(part.dtype.kind not in "iu" for part in arrays[1:]):
            raise Damaged("a sparse matrix without its parts")
        data, indices, starts = arrays
        inner, outer = (int(n) for n in (shape if columns else shape[::-1]))
        if data.dtype.kind not in "biufc" or inner * outer * data.itemsize > _LARGEST_DENSE:
            raise Refused("it has a sparse matrix too large to write out")
        lengths = np.diff(starts.astype(np.int64))
        if (
            len(starts) != outer + 1
            or starts[0] != 0
            or (lengths < 0).any()
            or starts[-1] != len(data)
            or len(indices) != len(data)
        ):
            raise Damaged("a sparse matrix whose parts disagree")
        if len(indices) and (indices.min() < 0 or indices.max() >= inner):
            raise Damaged("a sparse matrix with an index outside of it")
        matrix = np.zeros((outer, inner), data.dtype)
        np.add.at(matrix, (np.repeat(np.arange(outer), lengths), indices.astype(np.int64)), data)
        return np.ascontiguousarray(matrix.T) if columns else matrix

    return dense


def _names() -> dict[tuple[str, str], Name]:
    def of(convert):
        return lambda reader: _Instance(convert)

    calls = {
        ("builtins", "set"): _set,
        ("builtins", "frozenset"): lambda reader, items=(): frozenset(_set(reader, items)),
        ("builtins", "complex"): _complex,
        ("builtins", "bytes"): _bytes,
        ("builtins", "bytearray"): _bytes,
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): _default_dict,
        ("_codecs", "encode"): _encode,
        ("copyreg", "_reconstructor"): _reconstructor,
        ("numpy", "dtype"): _dtype,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.numeric", "_frombuffer"): lambda reader, data, dtype, shape, order: _array(
            reader, data, dtype, shape, _order(order)
        ),
        ("chumpy.ch", "Ch"): of(_chumpy),
        ("chumpy", "Ch"): of(_chumpy),
    }
    for kind, columns in (("csc", True), ("csr", False)):
        for module in (f"scipy.sparse.{kind}", f"scipy.sparse._{kind}"):
            for name in (f"{kind}_matrix", f"{kind}_array"):
                calls[module, name] = of(_sparse(columns))
    markers = [
        ("builtins", name)
        for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "object")
    ] + [("numpy", "ndarray")]
    # Classes that training left in published checkpoints, as keys of a dict of settings.
    for package in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        for module, name in (
            ("model_checkpoint", "ModelCheckpoint"),
            ("early_stopping", "EarlyStopping"),
            ("lr_monitor", "LearningRateMonitor"),
            ("timer", "Timer"),
        ):
            markers.append((f"{package}.callbacks.{module}", name))
    table = {key: Name(".".join(key), call) for key, call in calls.items()} | {
        key: Name(".".join(key)) for key in markers
    }
    for kind in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ):
        table["numpy", kind] = Name(f"numpy.{kind}", value=np.dtype(kind).str)
    table["numpy", "bool_"] = table["numpy", "bool"]
    return table


def _order(order: Any) -> Literal["C", "F"]:
    if order not in ("C", "F"):
        raise Damaged("an array in an unknown order")
    return order


NAMES = _names()
"""(module, name) → what a pickle may name."""


def read_pickle(path: str | Path) -> Any:
    """A pickle (or a .npy file that holds one) of numbers, text, containers, numpy arrays, chumpy
    arrays, scipy's sparse matrices.

    → dicts, lists, tuples, sets, numbers, str, bytes and numpy arrays; chumpy's become their
    values, sparse ones dense. Text of Python 2 is read as Latin-1. Raises ModelFolderError that
    says which name is refused, or that the file is damaged."""
    path = Path(path)

    def read():
        with open_regular(path) as file:
            stream = mapped(file)
            if stream.read(6) != b"\x93NUMPY":
                stream.seek(0)
                return load(stream, path.stat().st_size, NAMES)
            version = np.lib.format.read_magic(_at_start(stream))
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = header(stream)
            if not dtype.hasobject:
                stream.seek(0)
                return np.lib.format.read_array(stream, allow_pickle=False)
            array = load(stream, path.stat().st_size, NAMES)
            return (
                array.reshape(shape, order="F" if fortran else "C").item() if shape == () else array
            )

    return guarded(path, read)


def _at_start(stream):
    stream.seek(0)
    return stream
