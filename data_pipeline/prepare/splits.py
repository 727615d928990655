"""Which photos show one person, who is held out, and which photos are partners."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.records.schema import PARTNERS

# cosine of recognition vectors above which two photos show one person; strangers in old engravings
# or with similar beards reach 0.7
SAME_PERSON = 0.72
# number of photos up to which all pairs are compared: 7.7 TFLOP, about two minutes on two cores
ALL_PAIRS = 200_000
# photos of the same person that a held-out photo may remove from the split train
COST = 4
_BLOCK = 2048


def persons_by_recognition(vectors: np.ndarray) -> np.ndarray:
    """Group photos by person. A photo joins the most similar photo that started a group, if their
    cosine is above SAME_PERSON, and starts a group otherwise.

    Groups do not grow in chains, so a single ambiguous photo does not merge two people.

    Args:
        vectors: (N, D) float32 of length 1.

    Returns:
        (N,) int64, for each photo the number of the photo that started its group.
    """
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
    """Which photos are held out.

    Attributes:
        test: (N,) bool, the photos that are held out.
        repeated: {number: number of a held-out photo}, for photos that are left out because they
            show somebody who is held out.
        moved: numbers of photos that were to be held out but are trained on.
    """

    test: np.ndarray
    repeated: dict[int, int]
    moved: list[int]


def hold_out(
    keys: Sequence[str],
    persons: Sequence[str],
    parts: int,
    vectors: np.ndarray | None,
    given: bool = True,
) -> Split:
    """Hold out one person in `parts`, chosen by a hash of the person, or of the photo's file name
    where no person is given. The hash does not change when photos are added.

    With vectors nobody is in both splits: a photo that looks like a held-out one is left out of
    train. If a held-out photo would remove more than COST photos, it moves to train with all photos
    of its person; so does everyone if nobody else is left.

    Args:
        keys: of N photos.
        persons: of N photos; "" where none is given.
        parts: 0 holds nobody out.
        vectors: (N, D) float32 of length 1; None: photos are not compared.
        given: the persons come from the source; two of them are never taken for one, however
            similar they are.
    """
    names = [(person or key).rpartition("/")[2] for key, person in zip(keys, persons, strict=True)]
    test = np.array(
        [bool(parts) and zlib.crc32(name.encode()) % parts == 0 for name in names], bool
    )
    if test.all():
        return Split(np.zeros(len(keys), bool), {}, np.flatnonzero(test).tolist())
    if vectors is None or not test.any():
        return Split(test, {}, [])
    known = np.array([given and bool(person) for person in persons], bool)
    moved: list[int] = []
    cost, against = np.zeros(len(keys), np.int64), np.flatnonzero(~test)
    # Photos of train that have not been compared with the held-out ones.
    while len(against):
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
    """(N, PARTNERS) int64 numbers of other photos of the same person: the next ones in order, and
    then from the start; -1 where there are none or the person is "".
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
    """Raises DataError if persons are to be recognized among too many photos."""
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
    """Cosine and number of the most similar of the photos `among` for each row; -1, -1 if there are
    none. Two known photos are not compared.
    """
    best, whose = np.full(len(rows), -1, np.float32), np.full(len(rows), -1, np.int64)
    for start in range(0, len(among), _BLOCK):
        columns = among[start : start + _BLOCK]
        cosine = rows @ np.asarray(vectors[columns]).T
        if known is not None and known_among is not None:
            cosine[known[:, None] & known_among[columns][None]] = -1
        there = cosine.argmax(axis=1)
        highest = cosine[np.arange(len(rows)), there]
        better = highest > best
        best[better], whose[better] = highest[better], columns[there[better]]
    return best, whose


def _count_alike(
    vectors: np.ndarray, rows: np.ndarray, among: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """(R,) int64, how many of the photos `among` show the person of each row. Two known photos are
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
