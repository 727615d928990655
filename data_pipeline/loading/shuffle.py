"""The order of the data: an endless stream of samples that is a function of (seed, epoch), of which
every host takes its share.

Sample g of the stream is position g % N of a permutation of the N records that belongs to epoch
g // N. Each position is computed alone, so 20 million records need no array, and a run resumes at
any sample without reading those before it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from caphuman_jax.errors import SettingError

_ROUNDS = 8


def hashed(*words) -> np.ndarray:
    """(n,) uint64 hashes of integers, or of arrays (n,) of integers, with splitmix64's mixing
    (Steele et al. 2014)."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            word = np.atleast_1d(np.asarray(word)).astype(np.int64).view(np.uint64)
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permuted(position, count: int, *key) -> np.ndarray:
    """Where a permutation of range(count) sends positions.

    A Feistel network over a rectangle of a × b >= count cells (Black & Rogaway, "Ciphers with
    arbitrary finite domains", 2002). A result past the end is permuted again until it is inside.

    Args:
        position: (n,) integers.
        count: length of the permutation.
        key: integers, or arrays (n,), that choose the permutation.

    Returns:
        (n,) int64.
    """
    key = hashed(*key).view(np.int64)
    a = int(np.ceil(np.sqrt(count)))
    a, b = np.uint64(a), np.uint64(-(-count // a))

    def once(x, key):
        left, right = x % a, x // a
        for turn in range(0, _ROUNDS, 2):
            # Both sums stay far below 2^64, so they do not wrap around.
            left = (left + hashed(key, turn, right) % a) % a
            right = (right + hashed(key, turn + 1, left) % b) % b
        return left + right * a

    x = np.atleast_1d(np.asarray(position)).astype(np.uint64)
    key = np.broadcast_to(key, x.shape)
    x = once(x, key)
    while (outside := x >= count).any():
        x[outside] = once(x[outside], key[outside])
    return x.astype(np.int64)


def records_of(samples, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch (n,) and record number (n,) of sample numbers (n,), int64."""
    epoch, position = np.divmod(np.atleast_1d(np.asarray(samples, np.int64)), count)
    return epoch, permuted(position, count, seed, epoch)


@dataclasses.dataclass(frozen=True)
class Share:
    """One host's samples. Global batch s has the samples start + [s·batch, (s + 1)·batch), whatever
    the number of hosts; this host takes part number process_index of process_count.

    Raises:
        SettingError: a batch cannot be split evenly.
    """

    batch: int
    start: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.process_count:
            raise SettingError(
                f"a batch of {self.batch} cannot be split evenly over {self.process_count} hosts; "
                f"choose a multiple of {self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise SettingError(
                f"host {self.process_index} of {self.process_count}: hosts are numbered from 0 to "
                f"{self.process_count - 1}"
            )
        if self.start < 0:
            raise SettingError(f"a run cannot start at sample {self.start}")

    @property
    def local(self) -> int:
        """Number of this host's samples in a batch."""
        return self.batch // self.process_count

    def samples(self, step: int) -> np.ndarray:
        """Sample numbers (local,) int64 of this host in global batch `step`."""
        return (
            self.start
            + step * self.batch
            + self.process_index * self.local
            + np.arange(self.local, dtype=np.int64)
        )

    def steps(self, count: int) -> int:
        """Number of batches from `start` to the end of one pass over `count` records; the last may
        reach past the end.
        """
        return max(0, -(-(count - self.start) // self.batch))
