"""Who is who among the photos: persons, the people who are held out, other photos of the same
person.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.records.schema import PARTNERS

# cosine of recognition vectors above which two photos show one person; strangers with old
# engravings or like beards reach 0.7
SAME_PERSON = 0.72
# photos up to which every one is compared with every other: 7.7 TFLOP, about two minutes on two
# cores
ALL_PAIRS = 200_000
COST = (
    4  # photos that a held-out photo may cost the training split, because they show the same person
)
_BLOCK = 2048


def persons_by_recognition(vectors: np.ndarray) -> np.ndarray:
    """Numbers of persons (N,) int64: a photo is of the most alike of the photos that began a
    person, if that is above SAME_PERSON, or begins one.

    vectors: (N, D) float32 of length 1. Not linked in chains: one doubtful photo does not make one
    person of two."""
    person, leaders = np.zeros(len(vectors), np.int64), np.zeros(0, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        best, whose = _most_alike(block, vectors, leaders)
        new: list[int] = []
        within = block @ block.T
        for i in range(len(block)):
            if new and within[i, new].max() > best[i]:
                j = int(np.argmax(within[i, new]))
                best[i], whose[i] = within[i, new[j]], start + new[j]
            if best[i] > SAME_PERSON:
                person[start + i] = whose[i]
            else:
                person[start + i] = start + i
                new.append(i)
        leaders = np.concatenate([leaders, np.array(new, np.int64) + start])
    return person


@dataclasses.dataclass(frozen=True)
class Split:
    """test: mask (N,) of the photos that are held out. repeated: {number: number of a held-out
    photo} for photos that must not be trained on, since they show someone who is held out. moved:
    numbers of photos that were to be held out, and are trained on.
    """

    test: np.ndarray
    repeated: dict[int, int]
    moved: list[int]


def hold_out(
    keys: Sequence[str],
    persons: Sequence[str],
    parts: int,
    vectors: np.ndarray | None,
    told: bool = True,
) -> Split:
    """One person in `parts` (0: nobody), chosen by a hash of the person, or of the photo's own name
    where nobody says who it is ("").

    A hash does not change as photos are added. With vectors (N, D) float32 of length 1 nobody is in
    both splits: a photo that looks like a held-out one costs the training split. Where a held-out
    photo would cost more than COST of them, it is trained on itself, with all photos of its person;
    so is everyone if nobody else is left. Two persons whom the source tells apart (told) stay
    apart, however alike."""
    names = [(person or key).rpartition("/")[2] for key, person in zip(keys, persons, strict=True)]
    test = np.array(
        [bool(parts) and zlib.crc32(name.encode()) % parts == 0 for name in names], bool
    )
    if test.all():
        return Split(np.zeros(len(keys), bool), {}, np.flatnonzero(test).tolist())
    if vectors is None or not test.any():
        return Split(test, {}, [])
    known = np.array([told and bool(person) for person in persons], bool)
    moved: list[int] = []
    cost, against = np.zeros(len(keys), np.int64), np.flatnonzero(~test)
    while len(
        against
    ):  # photos that are trained on, and have not been compared with the held-out ones
        held = np.flatnonzero(test)
        cost[held] += _count_alike(vectors, held, against, known)
        total, size = Counter(), Counter()
        for i in held.tolist():
            total[persons[i] or i] += int(cost[i])
            size[persons[i] or i] += 1
        against = np.array(
            [i for i in held.tolist() if total[persons[i] or i] > COST * size[persons[i] or i]],
            np.int64,
        )
        test[against] = False
        moved += against.tolist()
    held, rest = np.flatnonzero(test), np.flatnonzero(~test)
    repeated = {}
    for start in range(0, len(rest) if len(held) else 0, _BLOCK):
        rows = rest[start : start + _BLOCK]
        best, whose = _most_alike(np.asarray(vectors[rows]), vectors, held, known[rows], known)
        repeated |= {
            int(i): int(j) for i, b, j in zip(rows, best, whose, strict=True) if b > SAME_PERSON
        }
    return Split(test, repeated, sorted(moved))


def partners(persons: Sequence[str]) -> np.ndarray:
    """Numbers (N, PARTNERS) int64 of other photos of the same person: of those who have them, the
    next ones in turn; -1 for none, or "" persons.
    """
    members: dict[str, list[int]] = {}
    for i, person in enumerate(persons):
        if person:
            members.setdefault(person, []).append(i)
    found = np.full((len(persons), PARTNERS), -1, np.int64)
    for numbers in members.values():
        for turn in range(1, min(PARTNERS, len(numbers) - 1) + 1):
            found[numbers, turn - 1] = numbers[turn:] + numbers[:turn]
    return found


def check_photos(same_person: str, photos: int) -> None:
    """Raises DataError where persons are asked for by recognition among too many photos."""
    if same_person == "recognition" and photos > ALL_PAIRS:
        raise DataError(
            f"--same-person recognition compares every photo with every other, which is done for "
            f"up to {ALL_PAIRS:,} photos, not {photos:,}; "
            "name the persons (--person), or leave it out"
        )


def _most_alike(
    rows: np.ndarray,
    vectors: np.ndarray,
    among: np.ndarray,
    known: np.ndarray | None = None,
    known_among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and number of the most alike of the photos `among` for each row; -1, -1 where there
    are none. Both known: not compared.
    """
    best, whose = np.full(len(rows), -1, np.float32), np.full(len(rows), -1, np.int64)
    for start in range(0, len(among), _BLOCK):
        columns = among[start : start + _BLOCK]
        cosine = rows @ np.asarray(vectors[columns]).T
        if known is not None:
            cosine[known[:, None] & known_among[columns][None]] = -1
        there = cosine.argmax(axis=1)
        highest = cosine[np.arange(len(rows)), there]
        better = highest > best
        best[better], whose[better] = highest[better], columns[there[better]]
    return best, whose


def _count_alike(
    vectors: np.ndarray, rows: np.ndarray, among: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """How many of the photos `among` show the person of each row, (R,) int64. Two known ones are
    not compared.
    """
    count = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        for below in range(0, len(among), _BLOCK):
            columns = among[below : below + _BLOCK]
            alike = np.asarray(vectors[some]) @ np.asarray(vectors[columns]).T > SAME_PERSON
            count[start : start + len(some)] += (
                alike & ~(known[some][:, None] & known[columns][None])
            ).sum(axis=1)
    return count
