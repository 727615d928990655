"""The order in which pictures are made, and its division into units of work."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from caphuman_jax.jobs.jobs import Job

LARGEST_UNIT = 64
_UNITS = 64  # at least, where there are enough pictures: late machines find work


class Picture(NamedTuple):
    """One picture to be made: its job and its number there."""

    job: Job
    number: int


class Plan:
    """All pictures in the order in which they are made; a unit of work is `size` of them in a row.

    Pictures that share a program, a person and a head are next to each other. The order depends on
    the jobs and the size of a unit alone, so that every machine has the same. `groups` is the
    number of programs and sets of settings; pictures of different groups are not made together.
    """

    def __init__(self, jobs: Sequence[Job], size: int | None = None):
        keys = _keys(jobs)
        self.groups = len({program for program, *_ in keys})
        self.jobs = [job for _, job in sorted(zip(keys, jobs), key=lambda pair: pair[0])]
        self._ends = list(itertools.accumulate(len(job.request.numbers) for job in self.jobs))
        self.total = self._ends[-1]
        self.size = size or max(1, min(LARGEST_UNIT, self.total // _UNITS))
        self.units = -(-self.total // self.size)

    def unit(self, number: int) -> Iterator[Picture]:
        """The pictures of a unit."""
        start, stop = number * self.size, min((number + 1) * self.size, self.total)
        at = bisect.bisect_right(self._ends, start)
        while start < stop:
            job = self.jobs[at]
            numbers, begin = job.request.numbers, self._ends[at] - len(job.request.numbers)
            end = min(stop, self._ends[at])
            yield from (Picture(job, numbers[i - begin]) for i in range(start, end))
            start, at = end, at + 1


def _keys(jobs: Sequence[Job]) -> list[tuple[int, int, int, int]]:
    """Sort keys of jobs: program, people and heads, each in order of first appearance, then the
    job's number.
    """
    seen: dict = {}
    rank = lambda thing: seen.setdefault(thing, len(seen))
    keys = []
    for job in jobs:
        subjects = job.request.subjects
        who = tuple((subject.references, subject.face) for subject in subjects)
        # Equal heads of a jobs file are one object, see `validate.Checker`.
        heads = tuple(id(subject.head) for subject in subjects)
        program = job.request.program_key
        keys.append((rank(program), rank(who), rank((who, heads)), job.number))
    return keys
