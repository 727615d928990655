"""Which texts next to the photos belong to which photo; the same in folders and in tars."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable

log = logging.getLogger("caphuman_jax")

TEXT_ENDINGS = ("txt", "json", "cls")
_PART = re.compile(r"[A-Za-z_][\w-]*")  # a word between dots, such as `input` in q.input.jpg
_NAMED = 3


def texts_of_photos(
    photos: Iterable[str], texts: Iterable[str]
) -> tuple[dict[str, dict[str, str]], set[str]]:
    """Match the photos and the texts of one folder by their names.

    A photo takes, for each of TEXT_ENDINGS, the text with the longest stem that is its own or its
    own without the last parts between dots: for p.1.jpg, p.1.txt or else p.txt. Failing that, it
    takes the only text of its webdataset key (what stands before the first dot), as
    q.outputs.txt for q.input.jpg, unless that text has a photo of its own name.

    Args:
        photos: file names.
        texts: names of files with one of TEXT_ENDINGS.

    Returns:
        {photo: {ending: text}}, and the texts that belong to no photo.
    """
    photos, texts = list(photos), sorted(texts)
    by_stem: dict[tuple[str, str], str] = {}
    by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
    own = {name.rpartition(".")[0] or name for name in photos}
    for name in texts:
        stem, _, ending = name.rpartition(".")
        ending = ending.lower()
        by_stem.setdefault((stem, ending), name)
        if stem not in own and _is_sample(stem):
            by_key[stem.partition(".")[0], ending].append(name)
    found: dict[str, dict[str, str]] = {}
    for photo in photos:
        stem, mine = photo.rpartition(".")[0] or photo, {}
        for ending in TEXT_ENDINGS:
            text = next((by_stem[s, ending] for s in _stems(stem) if (s, ending) in by_stem), None)
            others = by_key.get((stem.partition(".")[0], ending), ()) if _is_sample(stem) else ()
            if text is None and len(others) == 1:
                text = others[0]
            if text is not None:
                mine[ending] = text
        found[photo] = mine
    used = {text for mine in found.values() for text in mine.values()}
    return found, set(texts) - used


class Unused:
    """Counts the texts of a source that belong to no photo."""

    def __init__(self):
        self._count, self._first = 0, []

    def add(self, place: str, names: Iterable[str]) -> None:
        """Count the texts of a folder or a tar."""
        names = sorted(names)
        self._count += len(names)
        self._first += [place + name for name in names[: _NAMED - len(self._first)]]

    def report(self) -> None:
        """One warning for all of them."""
        if self._count:
            more = ", …" if self._count > len(self._first) else ""
            log.warning(
                "%d text file%s to no photo and %s not used: %s%s",
                self._count,
                " belongs" if self._count == 1 else "s belong",
                "is" if self._count == 1 else "are",
                ", ".join(self._first),
                more,
            )


def is_text(name: str) -> bool:
    """Whether a file has one of TEXT_ENDINGS."""
    return name.rpartition(".")[2].lower() in TEXT_ENDINGS


def _stems(stem: str) -> Iterable[str]:
    while stem:
        yield stem
        stem = stem.rpartition(".")[0]


def _is_sample(stem: str) -> bool:
    return all(_PART.fullmatch(part) for part in stem.split(".")[1:])
