"""Photos in a folder and its subfolders."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from caphuman_jax.io.images import PHOTO_ENDINGS
from data_pipeline.sources.base import (
    Item,
    Source,
    celeba_identities,
    described_item,
    look_up,
)
from data_pipeline.sources.paths import join, listing, read_bytes


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """A folder and its subfolders; keys are paths below it. NAME.txt next to NAME.jpg has one
    caption a line, NAME.json captions and a person. Names that begin with a dot are skipped."""

    root: str
    by_folder: bool = False

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        persons = celeba_identities(self.root)
        for key, beside in self._walk("", frozenset()):
            item = described_item(
                key,
                join(self.root, key),
                {
                    ending: functools.partial(read_bytes, join(self.root, path))
                    for ending, path in beside.items()
                },
            )
            person = (
                key.partition("/")[0]
                if self.by_folder and "/" in key
                else item.person or (look_up(persons, key) if persons else "")
            )
            yield dataclasses.replace(item, person=person or "")

    def _walk(self, below: str, above: frozenset) -> Iterator[tuple[str, dict[str, str]]]:
        """Each photo's key, and {ending: path} of the files next to it."""
        place = join(self.root, below) if below else self.root
        if "://" not in place:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in above:  # a link to a folder above
                return
            above = above | {(status.st_dev, status.st_ino)}
        names = dict(listing(place))
        # With a slash appended, folders are sorted among files as the keys of their contents are.
        for name in sorted(name + "/" * folder for name, folder in names.items()):
            if name.endswith("/"):
                yield from self._walk(below + name, above)
            elif PurePosixPath(name).suffix.lower() in PHOTO_ENDINGS:
                stem = name.rpartition(".")[0]
                yield (
                    below + name,
                    {
                        ending: f"{below}{stem}.{ending}"
                        for ending in ("txt", "json")
                        if f"{stem}.{ending}" in names
                    },
                )

    def _read(self, item: Item) -> bytes:
        return read_bytes(*item.place)
