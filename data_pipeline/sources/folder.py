"""Photos in a folder and its subfolders."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator

from caphuman_jax.errors import DataError
from caphuman_jax.io.files import valid_text
from caphuman_jax.io.picture_formats import HEAD, is_photo, reason
from data_pipeline.sources.base import (
    IDENTITY_FILE,
    MAX_TEXT,
    Item,
    Source,
    celeba_identities,
    described_item,
    look_up,
)
from data_pipeline.sources.companions import Unused, is_text, texts_of_photos
from data_pipeline.sources.paths import join, listing, read_bytes, read_photo_file


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """A folder and its subfolders; keys are paths below it. Photos are known by their ending, or by
    their content where the ending says nothing. NAME.txt next to NAME.jpg has one
    caption a line, NAME.json captions and a person. Names that begin with a dot are skipped."""

    root: str
    by_folder: bool = False

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        persons = celeba_identities(self.root)
        unused = Unused()
        for path, beside in self._walk("", frozenset(), unused):
            key = valid_text(path)
            if isinstance(beside, str):
                yield Item.broken(key, beside)
                continue
            item = described_item(
                key,
                join(self.root, path),
                {
                    ending: functools.partial(read_bytes, join(self.root, place), 0, MAX_TEXT + 1)
                    for ending, place in beside.items()
                },
            )
            person = (
                key.partition("/")[0]
                if self.by_folder and "/" in key
                else item.person or (look_up(persons, key) if persons else "")
            )
            yield dataclasses.replace(item, person=person or "")
        unused.report()

    def _walk(
        self, below: str, above: frozenset, unused: Unused
    ) -> Iterator[tuple[str, dict[str, str] | str]]:
        """Each photo's path below the root, and {ending: path} of the files next to it; or what is
        wrong with a folder.
        """
        place = join(self.root, below) if below else self.root
        try:
            if "://" not in place:
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in above:  # a link to a folder above
                    return
                above = above | {(status.st_dev, status.st_ino)}
            names = dict(listing(place))
        except OSError as error:
            if not below:
                raise DataError(f"{place} cannot be read ({reason(error)})") from error
            yield below + "(folder)", f"the folder cannot be read ({reason(error)})"
            return
        photos = [
            name
            for name, folder in names.items()
            if not folder and is_photo(name, functools.partial(self._head, join(place, name)))
        ]
        texts = [name for name, folder in names.items() if not folder and is_text(name)]
        found, others = texts_of_photos(photos, set(texts) - {IDENTITY_FILE})
        unused.add(below, others)
        # With a slash appended, folders are sorted among files as the keys of their contents are.
        folders = [name + "/" for name, folder in names.items() if folder]
        for name in sorted((*photos, *folders), key=valid_text):
            if name.endswith("/"):
                yield from self._walk(below + name, above, unused)
            else:
                yield below + name, {end: below + text for end, text in found[name].items()}

    def _head(self, place: str) -> bytes:
        return read_bytes(place, 0, HEAD)

    def _read(self, item: Item) -> bytes:
        return read_photo_file(*item.place)
