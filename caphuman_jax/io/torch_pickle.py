"""Files of torch.save, of both forms, read without PyTorch and without running what is in them.

* since torch 1.6: a zip archive; NAME/data.pkl is a pickle that refers to storages, NAME/data/KEY
holds one storage.
* before (and in many files that are still about, whatever they are called: 79999_iter.pth,
  deca_model.tar): magic number, protocol number, system information, the pickle and the list of
  storage keys, each a pickle, then the raw storages.

What is in them: torch_tensors.py.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

from caphuman_jax.io import torch_tensors
from caphuman_jax.io.binary_file import File
from caphuman_jax.io.pickle_reader import Damaged, Refused, load, mapped

# the magic number as pickles of all binary protocols write it
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_PROTOCOL = 1001


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
        made = torch_tensors.typed_storage(pid, found)
        size = pid[4] * (made.dtype.itemsize if made.dtype is not None else 1)
        if (
            made.key not in found
            or found[made.key].length < size
            or needed.setdefault(made.key, size) != size
        ):
            raise Damaged(f"storage {made.key[:40]} is missing or cut short")
        return made

    data = described.read(0, described.length).tobytes()
    return load(io.BytesIO(data), len(data), torch_tensors.NAMES, storage, inert=True)


def _entry(file: File, entry: zipfile.ZipInfo) -> torch_tensors.Storage:
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
    return torch_tensors.Storage(
        file, start, entry.file_size, entry.CRC or None
    )  # 0: written without checksums


def read_legacy(file: File) -> Any:
    """The content of an old torch.save file, with `Tensor` for every tensor. Raises Damaged,
    Refused and what pickles lead to.
    """
    with open(file.path, "rb") as raw:
        stream = mapped(raw)

        def part(persistent=None):
            inert = persistent is not None
            return load(stream, file.size, torch_tensors.NAMES, persistent, inert)

        part()  # the magic number, by which this function was chosen
        if part() != _LEGACY_PROTOCOL:
            raise Refused("it has another version of torch's old form")
        system = part()
        if type(system) is not dict or system.get("little_endian") is not True:
            raise Refused("its numbers are big-endian; save it again on an ordinary machine")
        sizes: dict[str, tuple[int, int]] = {}
        found: dict[str, torch_tensors.Storage] = {}

        def storage(pid):
            made = torch_tensors.typed_storage(pid, found)
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
        found[key] = torch_tensors.Storage(file, at + 8, count * width)
        at += 8 + count * width
    if at != file.size:
        raise Damaged("there is more in it than its tensors")
    return content
