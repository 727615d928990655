"""Inputs that once were findings and are too large to keep as files: each is made when it is read.

They are long, or unpack to far more than they are.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable

BOMBS: dict[str, Callable[[], bytes]] = {
    "prompt/digits": lambda: b"(a:" + b"1" * 40_000,
    "prompt/spaces": lambda: b"(a" + b" " * 40_000 + b"b)",
    "prompt/bars": lambda: b"[" + b"|" * 40_000,
    "json/escaped_quotes": lambda: b"[" * 101 + b'"' + b'\\"' * 30_000,
    "suite/deep": lambda: b"x = " + b"[" * 20_000,
    "suite/grid_of_10_to_the_15": lambda: _grid(1000),
    "head/albedo_of_169_megapixels": lambda: _albedo(13_000),
    "record/zlib_of_2_GB": lambda: _record("zlib", _zeros(128)),
    "record/image_of_900_megapixels": lambda: _record("image", _png(30_000, b"")),
}
"""READER/NAME → the input."""


def _grid(values: int) -> bytes:
    axis = f"[{', '.join(['1'] * values)}]"
    lines = [f"{name} = {axis}" for name in ("yaw", "pitch", "roll", "x", "y")]
    return "\n".join(["[[grids]]", *lines]).encode()


def _png(side: int, rows: bytes) -> bytes:
    """A picture of side × side pixels of one bit."""
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")):
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        out += len(content).to_bytes(4, "big") + name + content + checksum
    return out


def _albedo(side: int) -> bytes:
    picture = _png(side, bytes(1 + -(-side // 8)) * side)
    return json.dumps({"albedo": base64.b64encode(picture).decode()}).encode()


def _zeros(blocks: int) -> bytes:
    """A zlib stream of `blocks` times 16 MiB of zeros; its last block is copied, not packed."""
    packer, block = zlib.compressobj(9), bytes(2**24)
    first, again = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (blocks - 1) + packer.flush()


def _record(kind: str, payload: bytes) -> bytes:
    """A record in which the first feature of that encoding or kind is `payload`."""
    from fuzz import engine
    from fuzz.readers import small_layout

    from data_pipeline.records import tf_example
    from data_pipeline.records.schema import features

    found = features(small_layout())
    chosen = next(f for f in found if kind in (f.encoding, f.kind))
    record = tf_example.decode(found, (engine.CORPUS / "record" / "first").read_bytes())
    rest = [feature for feature in found if feature is not chosen]
    message = tf_example.encode(rest, {f.name: record[f.name] for f in rest})
    return message + _bytes_feature(chosen.name, payload)


def _bytes_feature(name: str, payload: bytes) -> bytes:
    """A message of tf.Example with one feature; appended to another one, it is merged with it."""
    inner = _field(1, name.encode()) + _field(2, _field(1, _field(1, payload)))
    return _field(1, _field(1, inner))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
