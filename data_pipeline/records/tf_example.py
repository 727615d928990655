"""Records as tf.Example messages, written and read without TensorFlow.

TensorFlow's own writer does not promise the same bytes twice, since its map has no order; here the
entries are sorted by name. The format is protobuf's wire format of
tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.records.schema import Feature

_BYTES, _FLOATS, _INTS = 1, 2, 3  # fields of Feature: which list it holds


def encode(features: Iterable[Feature], record: dict) -> bytes:
    """Encode a record as a message.

    Args:
        features: of the record.
        record: {feature's name: str, list of str, encoded image (bytes) or array}.

    Raises:
        DataError: a value does not fit its feature.
    """
    features = sorted(features, key=lambda f: f.name)
    names = {f.name for f in features}
    if names != set(record):
        raise DataError(
            f"a record lacks {sorted(names - set(record))} and has {sorted(set(record) - names)} "
            f"too many"
        )
    entries = (
        _field(1, _field(1, f.name.encode()) + _field(2, _value(f, record[f.name])))
        for f in features
    )
    return _field(1, b"".join(entries))


def decode(
    features: Iterable[Feature], message: bytes, only: Collection[str] | None = None
) -> dict:
    """Decode a message. Images stay encoded (bytes); arrays are read-only views where possible.

    Args:
        features: of the record.
        message: from `encode`.
        only: names of the entries to decode; None: all.

    Raises:
        DataError: an entry is missing, of another kind or of another length; the message names it.
    """
    wanted = {f.name: f for f in features if only is None or f.name in only}
    record = {}
    try:
        for name, value in _entries(memoryview(message)):
            if name in wanted:
                record[name] = _read(wanted[name], value)
    except (IndexError, UnicodeDecodeError) as error:
        raise DataError(f"not a tf.Example message: {error}") from error
    missing = set(wanted) - set(record)
    if missing:
        raise DataError(f"the record has no {', '.join(sorted(missing))}")
    return record


def decode_image(feature: Feature, encoded: bytes) -> np.ndarray:
    """Pixels of an image feature, (H, W, C) uint8, RGB. Raises DataError if they cannot be decoded
    or have another shape.
    """
    import cv2

    grey = feature.shape[-1] == 1
    stated = _stated_size(encoded)
    if stated is not None and stated != feature.shape[:2]:  # before it is decoded
        raise DataError(f"{feature.name} is {(*stated, feature.shape[-1])}, not {feature.shape}")
    try:
        pixels = stated and cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        )
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{feature.name} is not an image that can be decoded")
    pixels = pixels[..., None] if grey else pixels
    if pixels.shape != feature.shape:
        raise DataError(f"{feature.name} is {pixels.shape}, not {feature.shape}")
    return pixels


def _stated_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG or PNG file says it has; None for anything else."""
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    at = 2 if encoded[:2] == b"\xff\xd8" else len(encoded)
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame begins
            height, width = encoded[at + 5 : at + 7], encoded[at + 7 : at + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def encode_image(feature: Feature, pixels: np.ndarray, quality: int = 95) -> bytes:
    """JPEG (without chroma subsampling) or PNG of (H, W, C) uint8 pixels, RGB."""
    import cv2

    jpeg = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    ending, options = (
        (".jpg", jpeg) if feature.encoding == "jpeg" else (".png", [cv2.IMWRITE_PNG_COMPRESSION, 6])
    )
    return cv2.imencode(ending, pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels, options)[
        1
    ].tobytes()


def _value(feature: Feature, value) -> bytes:
    """A Feature message."""
    if feature.kind == "text":
        return _bytes_list([value.encode()])
    if feature.kind == "texts":
        return _bytes_list([text.encode() for text in value])
    if feature.kind == "image":
        return _bytes_list([bytes(value)])
    array = np.asarray(value)
    if array.shape != feature.shape or array.dtype != feature.dtype:
        raise DataError(
            f"{feature.name} is {array.dtype} {array.shape}, not {feature.dtype} {feature.shape}"
        )
    array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    if feature.encoding == "bytes":
        return _bytes_list([array.tobytes()])
    if feature.encoding == "zlib":
        return _bytes_list([zlib.compress(array.tobytes())])
    if array.dtype == np.float32:
        return _field(_FLOATS, _field(1, array.tobytes()))
    return _field(
        _INTS, _field(1, b"".join(_varint(int(v) & (1 << 64) - 1) for v in array.ravel()))
    )


def _bytes_list(values: list[bytes]) -> bytes:
    return _field(_BYTES, b"".join(_field(1, value) for value in values))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return b"%c%b%b" % (number << 3 | 2, _varint(len(payload)), payload)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _entries(message: memoryview) -> Iterator[tuple[str, tuple[int, memoryview]]]:
    """Name and (kind of list, the list's message) of every entry."""
    for number, features in _fields(message):
        if number != 1:
            continue
        for number, entry in _fields(features):
            parts = dict(_fields(entry)) if number == 1 else {}
            if 1 in parts:
                value = next(iter(_fields(parts.get(2, memoryview(b"")))), (0, memoryview(b"")))
                yield bytes(parts[1]).decode(), value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and payload of every length-delimited field; tf.Example messages have no others, but
    for single floats and ints.
    """
    place, end = 0, len(message)
    while place < end:
        tag, place = _read_varint(message, place)
        kind = tag & 7
        if kind == 2:
            length, place = _read_varint(message, place)
        elif kind == 5:
            length = 4
        elif kind == 0:
            length = _read_varint(message, place)[1] - place
        else:
            raise IndexError(f"field of kind {kind}")
        if place + length > end:
            raise IndexError("it ends too early")
        yield tag >> 3, message[place : place + length]
        place += length


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError("number too long")


def _read(feature: Feature, value: tuple[int, memoryview]):
    """A feature's value from the list of a Feature message."""
    kind, message = value
    expected = (
        _BYTES
        if feature.kind != "array" or feature.encoding
        else _FLOATS
        if feature.dtype == "float32"
        else _INTS
    )
    if kind != expected and not (kind == 0 and feature.kind == "texts"):
        raise DataError(f"{feature.name} holds another kind of values")
    parts = [payload for number, payload in _fields(message) if number == 1]
    if feature.kind == "texts":
        return [bytes(part).decode() for part in parts]
    if expected == _BYTES:
        if len(parts) != 1:
            raise DataError(f"{feature.name} holds {len(parts)} values, not one")
        if feature.kind == "text":
            return bytes(parts[0]).decode()
        if feature.kind == "image":
            return bytes(parts[0])
    return _array(feature, parts)


def _array(feature: Feature, parts: list[memoryview]) -> np.ndarray:
    dtype = np.dtype(feature.dtype).newbyteorder("<")
    try:
        if feature.encoding == "zlib":
            size = math.prod(feature.shape) * dtype.itemsize
            parts = [memoryview(_unpacked(parts[0], size))]
        if not feature.encoding and feature.dtype != "float32":
            array = np.array(
                [_signed(v) for part in parts for v in _varints(part)], np.int64
            ).astype(dtype)
        else:
            array = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype)
        return array.reshape(feature.shape)
    except (ValueError, OverflowError, zlib.error) as error:
        raise DataError(
            f"{feature.name} does not hold {feature.dtype} {feature.shape}: {error}"
        ) from error


def _unpacked(data: memoryview, size: int) -> bytes:
    """zlib's bytes, of which there must be `size`: a damaged record must not fill the memory."""
    reader = zlib.decompressobj()
    unpacked = reader.decompress(data, size + 1)
    if len(unpacked) != size or not reader.eof:
        raise ValueError(f"it does not unpack to {size:,} bytes")
    return unpacked


def _varints(message: memoryview) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = _read_varint(message, place)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
