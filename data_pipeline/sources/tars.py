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

from caphuman_jax.errors import DataError
from caphuman_jax.io.images import PHOTO_ENDINGS
from data_pipeline.sources import base, paths
from data_pipeline.sources.base import Item, Source

_BLOCK = 512


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
            "/".join(PurePosixPath(tar).parts[common:]).removesuffix(".tar") + "/": tar
            for tar in tars
        }
        for name in sorted(names):
            yield from sorted(_members(names[name], name), key=lambda item: item.key)

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
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = found[1].split(",")
    return [
        text
        for part in parts
        for text in expand(pattern[: found.start()] + part + pattern[found.end() :])
    ]


def _while_equal(rows: list[tuple]) -> Iterator[tuple]:
    for column in zip(*rows):
        if len(set(column)) > 1:
            return
        yield column


def _members(path: str, prefix: str) -> Iterator[Item]:
    """The photos of one tar; if it is damaged, also an item that says so."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with paths.open_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, ending = name.partition(".")
                    groups.setdefault(folder + slash + stem, {})[ending] = (
                        member.offset_data,
                        member.size,
                    )
            stream.seek(tar.offset)
            if stream.read(_BLOCK).strip(b"\0"):
                raise tarfile.ReadError(f"no file begins at byte {tar.offset}")
    except (OSError, tarfile.TarError) as error:
        yield Item.broken(
            prefix + "(damaged)", f"{path} is damaged, and what follows is lost: {error}"
        )
    for stem, parts in groups.items():
        read = {
            ending: functools.partial(paths.read_bytes, path, *parts[ending])
            for ending in ("txt", "json", "cls")
            if ending in parts
        }
        for ending, place in parts.items():
            if "." + ending.rpartition(".")[2].lower() not in PHOTO_ENDINGS:
                continue
            item = base.described_item(f"{prefix}{stem}.{ending}", path, read)
            if item.place[0] == path:
                person = item.person or (
                    read["cls"]().decode(errors="replace").strip() if "cls" in read else ""
                )
                item = dataclasses.replace(item, person=person, place=(path, *place))
            yield item
