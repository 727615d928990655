"""Flax's parameter files (msgpack), of which only the structure is read; arrays stay on disk.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md. Flax writes an array as an extension
of type 1 that holds a list of shape, name of the type, and bytes (`flax.serialization`). The
library `msgpack` would read every array to find the next one."""

from __future__ import annotations

import math
import struct
from typing import Any

import ml_dtypes
import numpy as np

from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import Damaged, Refused
from caphuman_jax.io.safetensors_file import Tensor

_ARRAY = 1
_DEEPEST, _MOST, _LONGEST_NAME = 32, 1_000_000, 1000
_DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
} | {"bool": np.dtype(bool), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LENGTHS = {1: ">B", 2: ">H", 4: ">I"}


def looks_like(start: bytes) -> bool:
    """Whether a file that begins so is a map of msgpack with a text as its first key."""
    sizes = {0xDE: 3, 0xDF: 5} | dict.fromkeys(range(0x81, 0x90), 1)
    at = sizes.get(start[0]) if start else None
    return at is not None and len(start) > at and (0xA0 <= start[at] <= 0xBF or start[at] == 0xD9)


def read_tree(file: File) -> dict[str, Any]:
    """Nested dicts, with `Tensor` for every array.

    Raises:
        Damaged: the file contradicts itself.
        Refused: it holds something else than Flax's parameters.
    """
    reader = _Reader(file)
    tree = reader.value(0)
    if not isinstance(tree, dict):
        raise Damaged("it holds no named parameters")
    if reader.at != file.size:
        raise Damaged("there is more in it than its parameters")
    return tree


class _Reader:
    def __init__(self, file: File):
        self.file, self.at, self.count = file, 0, 0

    def take(self, length: int) -> bytes:
        data = self.file.read(self.at, length).tobytes()
        self.at += length
        return data

    def number(self, width: int) -> int:
        return struct.unpack(_LENGTHS[width], self.take(width))[0]

    def value(self, depth: int) -> Any:
        """The value at the place that is reached: numbers, texts, lists, dicts, `Tensor`s."""
        self.count += 1
        if depth > _DEEPEST or self.count > _MOST:
            raise Refused("it is nested without end")
        code = self.take(1)[0]
        if code <= 0x7F or code >= 0xE0:
            return code - 256 * (code >= 0xE0)
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _NUMBERS:
            return struct.unpack(_NUMBERS[code], self.take(struct.calcsize(_NUMBERS[code])))[0]
        if 0x80 <= code <= 0x8F or code in (0xDE, 0xDF):
            return self._map(code & 0x0F if code < 0x90 else self.number(2 * (code - 0xDD)), depth)
        if 0x90 <= code <= 0x9F or code in (0xDC, 0xDD):
            length = code & 0x0F if code < 0xA0 else self.number(2 * (code - 0xDB))
            return [self.value(depth + 1) for _ in range(length)]
        if 0xA0 <= code <= 0xBF or code in (0xD9, 0xDA, 0xDB):
            return self._text(code & 0x1F if code < 0xC0 else self.number(2 ** (code - 0xD9)))
        if code in (0xC7, 0xC8, 0xC9):
            return self._extension(self.number(2 ** (code - 0xC7)))
        if code in _FIXED_EXTENSIONS:
            return self._extension(_FIXED_EXTENSIONS[code])
        raise Damaged("something that is not msgpack of Flax")

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(length):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in found:
                raise Damaged("a name that is no text, or that there is twice")
            found[name] = self.value(depth + 1)
        if "__msgpack_chunked_array__" in found:
            raise Refused("it has an array of more than 1 GB, in pieces")
        return found

    def _text(self, length: int) -> str:
        if length > _LONGEST_NAME:
            raise Refused("it has a name that is too long to be true")
        return self.take(length).decode()

    def _extension(self, length: int) -> Tensor:
        kind, end = self.take(1)[0], self.at + 1 + length - 1
        if kind != _ARRAY:
            raise Refused(f"it has a value of msgpack's extension {kind}, which is not an array")
        head = self.take(1)[0]
        shape, name = (
            (self.value(_DEEPEST - 2), self.value(_DEEPEST - 2)) if head == 0x93 else ((), "")
        )
        if (
            not isinstance(shape, list)
            or not all(type(n) is int and n >= 0 for n in shape)
            or len(shape) > 8
        ):
            raise Damaged("an array without shape")
        if name not in _DTYPES:
            raise Refused(f"it has an array of type {str(name)[:20]}")
        width = self.take(1)[0] - 0xC4
        if width not in (0, 1, 2):
            raise Damaged("an array without its numbers")
        size = self.number(2**width)
        tensor = Tensor(self.file, _DTYPES[name], tuple(shape), self.at)
        if size != math.prod(shape) * tensor.dtype.itemsize or self.at + size != end:
            raise Damaged("an array that does not have the size that its shape says")
        if end > self.file.size:
            raise Damaged("it ends before its last array")
        self.at = end
        return tensor
