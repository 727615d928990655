"""One thing that is wrong with records."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong; `number` of the record in its file, from 0, or -1 for the file."""

    file: str
    number: int
    key: str
    feature: str
    what: str

    def __str__(self) -> str:
        place = [
            self.file,
            *([f"record {self.number}"] if self.number >= 0 else []),
            *([f"key {self.key!r}"] if self.key else []),
            *([self.feature] if self.feature else []),
        ]
        return f"{', '.join(place)}: {self.what}"
