"""Mutations of files: bytes, text, JSON, and containers whose lengths and checksums are corrected,
so that what is in them is reached.

Every function takes a `random.Random`, so that a seed gives the same inputs.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 2, 7, 8, 15, 16, 31, 32, 64, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31)
_VALUES = (
    None, True, False, 0, -1, 1, 65, 2**31, 2**53 + 1, 2**63, 10**99, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), "", "x", "\u202e", "\x00", "\x1b[31m", "é" * 20, "a" * 300, "../..",
    "/etc/passwd", "nan", "-1", [], {}, [[]], [None], [1, 2, 3], {"a": 1}, {"": None}, [0.5] * 27,
)  # fmt: skip
_TOKENS = tuple(
    token.encode()
    for token in (
        *"()[]{}<>:;,=|/#-+~%&*?!'", '"', "\\", "\n", "\r", "\t", "..", "1e999", "nan", "inf", "-0",
        "9" * 400, "\ufeff", "\u2028", "\x00", "\x1b[2J", "é", "𝒳", "BREAK", "<lora:x:1>",
        "null", "true", "NaN", "Infinity", "[[[[[[[[", '{"a":', "%s", "${x}", "file://", "0x10",
        "1_000", "٣", "²",
    )
) + (b"\xff", b"\xc3\x28", b"\xed\xa0\x80")  # fmt: skip


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(rng, out)
    return bytes(out)


def _change(rng: random.Random, out: bytearray) -> None:
    kind = rng.randrange(9)
    at = rng.randrange(len(out) + 1)
    if kind == 0 and out:
        out[at % len(out)] ^= 1 << rng.randrange(8)
    elif kind == 1 and out:
        out[at % len(out)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind == 2:
        del out[at : at + rng.choice((1, 2, 4, 16, 64))]
    elif kind == 3:
        out[at:at] = rng.choice(_TOKENS)
    elif kind == 4:
        out[at:at] = out[at : at + rng.choice((1, 4, 16, 128))] * rng.choice((1, 2, 8))
    elif kind == 5:
        del out[at:]
    elif kind == 6:
        start, length = rng.randrange(len(out) + 1), rng.choice((4, 16, 64))
        out[at : at + length] = out[start : start + length]
    else:  # a number, such as a length
        width = rng.choice("BHIQ")
        value = rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.getrandbits(64)
        size = struct.calcsize(width)
        packed = struct.pack(rng.choice("<>") + width, value & (2 ** (8 * size) - 1))
        out[at : at + size] = packed


def any_text(rng: random.Random, data: bytes) -> bytes:
    """Tokens and parts of a text are inserted, repeated and removed."""
    if rng.random() < 0.3:
        return any_bytes(rng, data)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(4)
        if kind == 0:
            out[at:at] = rng.choice(_TOKENS)
        elif kind == 1:
            out[at : at + rng.choice((1, 2, 8, 32))] = rng.choice(_TOKENS)
        elif kind == 2:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.choice((1, 8, 64))]
        else:
            del out[at : at + rng.choice((1, 2, 8, 32))]
    return bytes(out)


def any_json(rng: random.Random, data: bytes) -> bytes:
    """Values of a JSON text are exchanged, removed, repeated and renamed."""
    if rng.random() < 0.15:
        return any_text(rng, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return any_text(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _json_value(rng, value)
    return json.dumps(value).encode()


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """`any_json` on one line of many."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = any_json(rng, lines[at])
    if rng.random() < 0.1:
        lines.insert(at, rng.choice(lines))
    return b"\n".join(lines)


def _json_value(rng: random.Random, value):
    if isinstance(value, dict) and value and rng.random() < 0.9:
        out, key = dict(value), rng.choice(list(value))
        kind = rng.randrange(12)
        if kind == 0:
            del out[key]
        elif kind == 1:
            out[rng.choice(("", "a.b", "é", "\x00", "product", "photo", key + "2"))] = out[key]
        elif kind == 2:
            out[key] = out[rng.choice(list(out))]
        else:
            out[key] = _json_value(rng, out[key])
        return out
    if isinstance(value, list) and value and rng.random() < 0.8:
        out, at = list(value), rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            del out[at]
        elif kind == 1:
            out.insert(at, out[at])
        else:
            out[at] = _json_value(rng, out[at])
        return out
    if isinstance(value, str) and rng.random() < 0.4:
        return any_text(rng, value.encode(errors="replace")).decode(errors="replace")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.3:
        return rng.choice((-value, value + 1, value * 1000, value - 0.5 if abs(value) < 1e9 else 3))
    return rng.choice(_VALUES)


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """Either the header, with its length corrected, or any bytes."""
    if rng.random() < 0.3 or len(data) < 8:
        return any_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = any_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def zipped(rng: random.Random, data: bytes, inner: Mutation = any_bytes) -> bytes:
    """One file of an archive, with its checksum corrected; or any bytes."""
    if rng.random() < 0.3:
        return any_bytes(rng, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # noqa: BLE001 - it was mutated before
        return any_bytes(rng, data)
    if not entries:
        return any_bytes(rng, data)
    at = rng.randrange(len(entries))
    name, content = entries[at]
    if rng.random() < 0.1:
        name = any_text(rng, name.encode(errors="replace")).decode("latin1") or "x"
    entries[at] = (name, inner(rng, content))
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name.replace("\x00", "") or "x"), content, kind)
    return out.getvalue()


def png_texts(rng: random.Random, data: bytes) -> bytes:
    """`png`, but mostly the JSON of its texts."""
    return png(rng, data, texts=0.8)


def png(rng: random.Random, data: bytes, texts: float = 0.0) -> bytes:
    """One chunk of a PNG file, with its length and checksum corrected; other formats: any bytes.
    texts: how often the chunk is a text, if there is one.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or rng.random() < (0.2 if not texts else 0.05):
        return any_bytes(rng, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return any_bytes(rng, data)
    named = [at for at, chunk in enumerate(chunks) if chunk[0] == b"tEXt"]
    at = rng.choice(named if named and rng.random() < texts else range(len(chunks)))
    name, content = chunks[at]
    if name == b"tEXt" and rng.random() < 0.8:
        key, _, text = content.partition(b"\0")
        content = key + b"\0" + any_json(rng, text)
    elif rng.random() < 0.1:
        name = rng.choice((b"IHDR", b"IDAT", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"tRNS", b"PLTE"))
    else:
        content = any_bytes(rng, content)
    chunks[at] = (name, content)
    if rng.random() < 0.1:
        chunks.insert(at, rng.choice(chunks))
    out = bytearray(data[:8])
    for name, content in chunks:
        sum_ = zlib.crc32(name + content).to_bytes(4, "big")
        out += len(content).to_bytes(4, "big") + name + content + sum_
    return bytes(out)


def protobuf(rng: random.Random, data: bytes) -> bytes:
    """One field of a message or of a message in it, with the lengths corrected; or any bytes."""
    fields = _fields(data)
    if not fields or rng.random() < 0.1:
        return any_bytes(rng, data)
    at, kind = rng.randrange(len(fields)), rng.randrange(12)
    key, value = fields[at]
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif kind == 2:
        fields[at] = (key & 7 | rng.choice((1, 2, 3, 5, 7, 8, 20)) << 3, value)
    elif isinstance(value, int):
        fields[at] = (key, rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64))
    elif key & 7 == 2:
        fields[at] = (key, protobuf(rng, value))
    else:
        fields[at] = (key, rng.choice((bytes(len(value)), b"\xff" * len(value))))
    return b"".join(map(_field, fields))


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(key, value) of each field of a message; [] where it is not one."""
    fields, at = [], 0
    try:
        while at < len(data):
            key, at = _varint_at(data, at)
            if key & 7 == 0:
                value, at = _varint_at(data, at)
            else:
                size = {1: 8, 5: 4}.get(key & 7)
                if key & 7 == 2:
                    size, at = _varint_at(data, at)
                if size is None or key < 8 or at + size > len(data):
                    return []
                value, at = data[at : at + size], at + size
            fields.append((key, value))
    except IndexError:
        return []
    return fields


def _field(field: tuple[int, int | bytes]) -> bytes:
    key, value = field
    if isinstance(value, int):
        return _varint(key) + _varint(value)
    return _varint(key) + (_varint(len(value)) if key & 7 == 2 else b"") + value


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tfrecord(rng: random.Random, data: bytes) -> bytes:
    """The messages of a file with their lengths corrected, the frame around one, or any bytes."""
    frames, at = [], 0
    while at + 16 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        if at + 16 + length > len(data):
            break
        frames.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    if not frames or rng.random() < 0.2:
        return any_bytes(rng, data)
    at, kind = rng.randrange(len(frames)), rng.randrange(8)
    if kind == 0:
        del frames[at]
    elif kind == 1:
        frames.insert(at, frames[at] * rng.choice((1, 2, 50)))
    else:
        frames[at] = protobuf(rng, frames[at])
    heads = [len(frame).to_bytes(8, "little") for frame in frames]
    if kind == 2:
        heads[at] = rng.choice(_NUMBERS).to_bytes(8, "little")
    zeros = bytes(4)  # the checksums, which are not compared
    return b"".join(head + zeros + frame + zeros for head, frame in zip(heads, frames))


def tar(rng: random.Random, data: bytes) -> bytes:
    """A block, with the checksum of headers corrected; or any bytes."""
    if rng.random() < 0.3 or len(data) < 512:
        return any_bytes(rng, data)
    out, at = bytearray(data), 512 * rng.randrange(len(data) // 512)
    block = bytearray(out[at : at + 512])
    fields = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
    start, width = rng.choice(fields)
    if width <= 12 and rng.random() < 0.7:
        new = rng.choice((b"", b"0", b"777777777777", b"-1", b"\x80" + b"\xff" * 11, b"\xff" * 12,
                          b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"6", b"9"))  # fmt: skip
    else:
        new = any_text(rng, bytes(block[start : start + width]).rstrip(b"\0"))
    block[start : start + width] = new[:width].ljust(width, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) & 0o777777)
    out[at : at + 512] = block
    if rng.random() < 0.05:
        extra = tarfile.TarInfo("x" * 120)
        out[at:at] = extra.tobuf(rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    return bytes(out)
