"""Photos in tars in the webdataset layout: KEY.jpg with KEY.txt (captions), KEY.json (captions,
person), KEY.cls (person).
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, cast

from caphuman_jax.errors import DataError
from caphuman_jax.io.files import valid_text
from caphuman_jax.io.picture_formats import HEAD, MAX_BYTES, is_photo, reason
from data_pipeline.sources import base, companions, paths
from data_pipeline.sources.base import Item, Source

_BLOCK = 512
_LONGEST_HEADER = 2**20
_MOST_TARS = 1_000_000


@dataclasses.dataclass(frozen=True)
class TarSource(Source):
    """The tars of a pattern with *, ?, [], {000..123} and {a,b} as in a shell. Keys are TAR/NAME,
    with TAR without its ending and without the folders that all tars share."""

    pattern: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        tars = find(self.pattern)
        folders = [PurePosixPath(tar).parent.parts for tar in tars]
        common = sum(1 for _ in _while_equal(folders))
        names = {
            valid_text("/".join(PurePosixPath(tar).parts[common:])).removesuffix(".tar") + "/": tar
            for tar in tars
        }
        unused = companions.Unused()
        for name in sorted(names):
            yield from sorted(_members(names[name], name, unused), key=lambda item: item.key)
        unused.report()

    def _read(self, item: Item) -> bytes:
        tar, start, size = item.place
        content = paths.read_bytes(tar, start, size)
        if len(content) < size:
            raise DataError(f"{item.key}: {tar} ends before it does; fetch the tar again")
        return content


def find(pattern: str) -> list[str]:
    """Paths that a pattern names, sorted. Raises DataError if one does not exist."""
    found: set[str] = set()
    for one in expand(pattern):
        if re.search(r"[*?[]", one):
            matches = (
                [f"{one.partition('://')[0]}://{m}" for m in paths.file_system(one).glob(one)]
                if "://" in one
                else glob.glob(one, recursive=True)
            )
        else:
            matches = [one] if paths.exists(one) else []
        if not matches:
            raise DataError(f"{one} does not exist")
        found.update(matches)
    return sorted(found)


def expand(pattern: str) -> list[str]:
    """The texts that {000..123} and {a,b} expand to."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = numbers.groups()
        if len(last) > 12 or int(last) - int(first) >= _MOST_TARS:
            raise DataError(f"{pattern} names more than {_MOST_TARS:,} tars; divide it")
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = found[1].split(",")
    rest = expand(pattern[found.end() :])  # once, not for every part
    if len(parts) * len(rest) > _MOST_TARS:
        raise DataError(f"{pattern} names more than {_MOST_TARS:,} tars; divide it")
    return [pattern[: found.start()] + part + end for part in parts for end in rest]


def _while_equal(rows: list[tuple]) -> Iterator[tuple]:
    for column in zip(*rows):
        if len(set(column)) > 1:
            return
        yield column


class _Headers:
    """A file whose headers are read: tarfile reads long names and other entries of a header whole,
    as many bytes as it says, and Python allocates them before.
    """

    def __init__(self, stream: IO[bytes]):
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a name or header has {size:,} bytes")
        return self._stream.read(size)


def _members(path: str, prefix: str, unused: companions.Unused) -> Iterator[Item]:
    """The photos of one tar; if it is damaged, also an item that says so."""
    folders: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with (
            paths.open_file(path) as stream,
            tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as tar,
        ):
            for member in tar:
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    size = -1 if member.issparse() else member.size
                    folders.setdefault(folder + slash, {})[name] = (member.offset_data, size)
            stream.seek(tar.offset)
            if stream.read(_BLOCK).strip(b"\0"):
                raise tarfile.ReadError(f"no file begins at byte {tar.offset}")
    except (OSError, tarfile.TarError, ValueError, OverflowError, IndexError) as error:
        yield Item.broken(
            prefix + "(damaged)", f"{path} is damaged, and what follows is lost: {reason(error)}"
        )
    for folder, members in folders.items():
        photos = [
            name
            for name, (start, size) in members.items()
            if is_photo(
                name, functools.partial(paths.read_bytes, path, start, max(0, min(size, HEAD)))
            )
        ]
        found, others = companions.texts_of_photos(photos, filter(companions.is_text, members))
        unused.add(prefix + valid_text(folder), map(valid_text, others))
        for name in photos:
            yield _item(
                f"{prefix}{valid_text(folder + name)}",
                path,
                members[name],
                {end: members[text] for end, text in found[name].items()},
            )


def _item(key: str, tar: str, place: tuple[int, int], beside: dict) -> Item:
    if not 0 <= place[1] <= MAX_BYTES:
        return Item.broken(key, f"it is sparse, or larger than {MAX_BYTES >> 20} MB")
    if any(not 0 <= size <= base.MAX_TEXT for _, size in beside.values()):
        return Item.broken(key, "the text that belongs to it is too long")
    read = {end: functools.partial(paths.read_bytes, tar, *one) for end, one in beside.items()}
    item = base.described_item(key, tar, read)
    if item.place[0] != tar:
        return item
    person = item.person or (
        read["cls"]().decode(errors="replace").strip() if "cls" in read else ""
    )
    return dataclasses.replace(item, person=person, place=(tar, *place))
