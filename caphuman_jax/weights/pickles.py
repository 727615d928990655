"""Pickles read without running anything that is in them.

A pickle is a small program; Python's own reader calls whatever function it names. Here a name is looked up in a fixed table
(`NAMES`) of inert builders that make containers, numbers and arrays, and every other name ends the reading. Nothing is
imported on a file's behalf, and no method of an object that the file made is called.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import ModelFolderError

_LARGEST_DENSE = 2**30  # bytes of a sparse matrix written out
_MOST_DIMENSIONS = 32


class Damaged(Exception):
    """What is read contradicts itself; becomes a ModelFolderError that names the file."""


class Refused(Exception):
    """The pickle asks for something that is not built."""


@dataclass(frozen=True)
class Name:
    """What a pickle gets where it names a class or function. `call(reader, *args)` builds; None: a mere marker, never called."""

    name: str
    call: Callable[..., Any] | None = field(default=None, compare=False)
    value: Any = field(default=None, compare=False)


class Reader(pickle._Unpickler):
    """Python's reader in Python, whose every way of reaching code is replaced; `names` is {(module, name): Name}."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream, names: Mapping[tuple[str, str], Name], size: int, persistent: Callable[[Any], Any] | None = None):
        super().__init__(stream, fix_imports=False, encoding="latin1")
        self.names, self.persistent = names, persistent
        self.budget = min(8 * size + 2**26, 2**31)  # bytes that builders may copy: a small file must not become a large one

    def spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise Refused("it asks for far more memory than its own size")

    def find_class(self, module: str, name: str) -> Name:
        module = _RENAMED.get(module, module)
        if module.startswith("numpy.core."):
            module = "numpy._core." + module.removeprefix("numpy.core.")
        found = self.names.get((module, name))
        if found is None:
            raise Refused(f"it names {module}.{name}, which is neither a tensor nor a container nor a number")
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise Refused("it refers to objects outside of itself (persistent ids)")
        return self.persistent(pid)

    def get_extension(self, code: int) -> None:
        raise Refused(f"it uses extension code {code}")

    def invoke(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Name):
            raise Damaged(f"a {type(function).__name__} is called")
        if function.call is None:
            raise Refused(f"it calls {function.name}")
        if type(args) is not tuple:
            raise Damaged("arguments are no tuple")
        try:
            return function.call(self, *args)
        except TypeError as error:
            raise Damaged(f"{function.name} with arguments that do not suit it ({error})") from error

    def _instantiate(self, klass: Any, args: Any) -> None:  # of the opcodes INST and OBJ
        self.append(self.invoke(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.invoke(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        if keywords:
            raise Refused("it builds an object from keyword arguments")
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Built):
            target.set_state(self, state)
        elif type(target) is not dict:  # attributes of an ordered dict (a state dict's versions) are left out
            name = target.name if isinstance(target, Name) else type(target).__name__
            raise Refused(f"it sets the state of {name}")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Damaged("entries of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_appends(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not list:
            raise Damaged("items of something that is no list")
        self.stack[-1].extend(items)

    def load_append(self) -> None:
        item = self.stack.pop()
        if type(self.stack[-1]) is not list:
            raise Damaged("items of something that is no list")
        self.stack[-1].append(item)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Damaged("items of something that is no set")
        self.stack[-1].update(_key(item) for item in items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # before `append` is looked up: it is that of another list afterwards
        self.append(frozenset(_key(item) for item in items))

    def load_bytearray8(self) -> None:  # Python's own allocates before it looks whether there is so much
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _refuse_buffers(self) -> None:
        raise Refused("it refers to buffers outside of itself")

    dispatch.update({
        pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_reduce, pickle.NEWOBJ_EX[0]: load_newobj_ex, pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append, pickle.APPENDS[0]: load_appends, pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8, pickle.NEXT_BUFFER[0]: _refuse_buffers, pickle.READONLY_BUFFER[0]: _refuse_buffers,
    })


_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names


def _key(key: Any) -> Any:
    """Keys whose hash is found at once; nested tuples that share parts would take exponential time."""
    simple = (str, bytes, int, float, type(None), Name)
    if isinstance(key, simple) or (type(key) is tuple and all(isinstance(part, simple) for part in key)):
        return key
    raise Refused(f"a key is a {type(key).__name__}")


class Built:
    """Something whose state comes after it. `finish` gives what it stands for, when all is read."""

    def set_state(self, reader: Reader, state: Any) -> None:
        raise Refused(f"it sets the state of {type(self).__name__}")

    def finish(self, resolve: Callable[[Any], Any]) -> Any:
        raise NotImplementedError


class _DType(Built):
    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def set_state(self, reader, state):
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("it has arrays of records")
        if state[1] not in ("<", ">", "=", "|"):
            raise Damaged("a byte order that there is not")
        self.dtype = self.dtype.newbyteorder(state[1])

    def finish(self, resolve):
        return self.dtype


class _Array(Built):
    value = None

    def set_state(self, reader, state):
        shape, dtype, fortran, data = state[-4:] if type(state) is tuple and len(state) in (4, 5) else (None,) * 4
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
            raise Damaged("attributes that are no dict")
        self.state = state

    def finish(self, resolve):
        return self.convert(resolve(self.state))


def _array(reader: Reader, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
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
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[SUa]\d{1,6}|O8?|bool)", code):
        raise Refused(f"it has arrays of type {str(code)[:40]!r}")
    return _DType(np.dtype("O" if code.startswith("O") else code))


def _scalar(reader, dtype, data=None):
    if data is None:
        raise Refused("it has a scalar of an object")
    return _array(reader, data, dtype, (), "C")[()]


def _reconstruct(reader, kind, shape, typecode):
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
    return {_key(item) for item in items}


def _ordered_dict(reader, items=()):
    if type(items) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
        raise Refused("it makes an ordered dict of something else than pairs")
    reader.spend(64 * len(items))
    return {_key(key): value for key, value in items}


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
    if not isinstance(kind, Name) or kind.call is None or not isinstance(base, Name) or base.name != "builtins.object" or state is not None:
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
        if type(shape) is not tuple or len(shape) != 2 or any(not isinstance(n, (int, np.integer)) or n < 0 for n in shape):
            raise Damaged("a sparse matrix without shape")
        if any(not isinstance(part, np.ndarray) or part.ndim != 1 for part in parts) or any(part.dtype.kind not in "iu" for part in parts[1:]):
            raise Damaged("a sparse matrix without its parts")
        data, indices, starts = parts
        inner, outer = (int(n) for n in (shape if columns else shape[::-1]))
        if data.dtype.kind not in "biufc" or inner * outer * data.itemsize > _LARGEST_DENSE:
            raise Refused("it has a sparse matrix too large to write out")
        lengths = np.diff(starts.astype(np.int64))
        if len(starts) != outer + 1 or starts[0] != 0 or (lengths < 0).any() or starts[-1] != len(data) or len(indices) != len(data):
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
        ("builtins", "set"): _set, ("builtins", "frozenset"): lambda reader, items=(): frozenset(_set(reader, items)),
        ("builtins", "complex"): _complex, ("builtins", "bytes"): _bytes, ("builtins", "bytearray"): _bytes,
        ("collections", "OrderedDict"): _ordered_dict, ("collections", "defaultdict"): _default_dict,
        ("_codecs", "encode"): _encode, ("copyreg", "_reconstructor"): _reconstructor,
        ("numpy", "dtype"): _dtype, ("numpy._core.multiarray", "scalar"): _scalar, ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.numeric", "_frombuffer"): lambda reader, data, dtype, shape, order: _array(reader, data, dtype, shape, _order(order)),
        ("chumpy.ch", "Ch"): of(_chumpy), ("chumpy", "Ch"): of(_chumpy),
    }
    for kind, columns in (("csc", True), ("csr", False)):
        for module in (f"scipy.sparse.{kind}", f"scipy.sparse._{kind}"):
            for name in (f"{kind}_matrix", f"{kind}_array"):
                calls[module, name] = of(_sparse(columns))
    markers = [("builtins", name) for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "object")] + [("numpy", "ndarray")]
    # Classes that training left in published checkpoints, as keys of a dict of settings.
    for package in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        for module, name in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"),
                             ("lr_monitor", "LearningRateMonitor"), ("timer", "Timer")):
            markers.append((f"{package}.callbacks.{module}", name))
    table = {key: Name(".".join(key), call) for key, call in calls.items()} | {key: Name(".".join(key)) for key in markers}
    for kind in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"):
        table["numpy", kind] = Name(f"numpy.{kind}", value=np.dtype(kind).str)
    table["numpy", "bool_"] = table["numpy", "bool"]
    return table


def _order(order: Any) -> str:
    if order not in ("C", "F"):
        raise Damaged("an array in an order that there is not")
    return order


NAMES = _names()
"""(module, name) → what a pickle may name."""


def load(stream, size: int, names: Mapping[tuple[str, str], Name] = NAMES, persistent: Callable[[Any], Any] | None = None) -> Any:
    """One pickle from `stream` (read, readline; never asked for more than it has), which stands behind it afterwards.

    `size`: bytes of the stream, which bound what builders may take. Raises Refused, or whatever a damaged pickle leads to.
    """
    return _resolved(Reader(stream, names, size, persistent).load())


def _resolved(value: Any) -> Any:
    """`value` with everything Built replaced, each shared part once."""
    done: dict[int, Any] = {}

    def resolve(value):
        kind = type(value)
        if kind not in (dict, list, tuple) and not isinstance(value, Built):
            return value
        if id(value) in done:
            return done[id(value)]
        if kind is dict:
            done[id(value)] = value
            for key in value:
                value[key] = resolve(value[key])
        elif kind is list:
            done[id(value)] = value
            value[:] = map(resolve, value)
        elif kind is tuple:
            done[id(value)] = tuple(map(resolve, value))
            keep.append(value)
        else:
            done[id(value)] = value.finish(resolve)
            keep.append(value)
        return done[id(value)]

    keep: list[Any] = []  # an id must not be used again
    return resolve(value)


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """`read()`, whose every failure is a ModelFolderError that names the file: hostile data can make any step fail."""
    try:
        return read()
    except ModelFolderError:
        raise
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path} is missing") from error
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise ModelFolderError(f"{path} is refused, and nothing in it was run: {error}") from error
    except Exception as error:  # noqa: BLE001
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelFolderError(f"{path} is damaged or no file of this kind: {said}") from error


def mapped(file) -> mmap.mmap | io.BytesIO:
    """A file as a stream that never gives more than it has."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # empty
        return io.BytesIO()


def read_pickle(path: str | Path) -> Any:
    """A pickle (or a .npy file that holds one) of numbers, text, containers, numpy arrays, chumpy arrays, scipy's sparse matrices.

    → dicts, lists, tuples, sets, numbers, str, bytes and numpy arrays; chumpy's become their values, sparse ones dense. Text of
    Python 2 is read as Latin-1. Raises ModelFolderError that says which name is refused, or that the file is damaged.
    """
    path = Path(path)

    def read():
        with open(path, "rb") as file:
            stream = mapped(file)
            if stream.read(6) != b"\x93NUMPY":
                stream.seek(0)
                return load(stream, path.stat().st_size)
            version = np.lib.format.read_magic(_at_start(stream))
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = header(stream)
            if dtype != object:
                stream.seek(0)
                return np.lib.format.read_array(stream, allow_pickle=False)
            array = load(stream, path.stat().st_size)
            return array.reshape(shape, order="F" if fortran else "C").item() if shape == () else array

    return guarded(path, read)


def _at_start(stream):
    stream.seek(0)
    return stream
