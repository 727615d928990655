"""Photos in the layout that the original CapHuman trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from data_pipeline.sources.base import (
    Item,
    Source,
    celeba_identities,
    look_up,
    read_pairs,
    texts_of,
)
from data_pipeline.sources.paths import exists, join, read_photo_file, read_text


@dataclasses.dataclass(frozen=True)
class OriginalSource(Source):
    """imgid.txt and Full_align_sup/ID.png, with captions.json and identity_CelebA.txt if they
    exist.

    The layout's reference crops (Face_align_sup) show the same photos, and its hints, vectors and
    masks come from the original's own networks, so all of them are measured again.
    """

    root: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        names = {
            name.strip().removesuffix(".png")
            for name in read_text(join(self.root, "imgid.txt")).splitlines()
        } - {""}
        captions = (
            read_pairs(join(self.root, "captions.json"))
            if exists(join(self.root, "captions.json"))
            else {}
        )
        persons = celeba_identities(self.root)
        for name in sorted(names):
            yield Item(
                name,
                str(look_up(persons, name) or ""),
                texts_of(look_up(captions, name)),
                (join(self.root, "Full_align_sup", f"{name}.png"),),
            )

    def _read(self, item: Item) -> bytes:
        return read_photo_file(*item.place)
