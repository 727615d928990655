"""The order in which pictures are made, and its division into units of work."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from caphuman_jax.jobs.jobs import Job
from caphuman_jax.person.person import WantedHead
from caphuman_jax.pipeline.request import OWN_SETTINGS

_OWN = (*OWN_SETTINGS, "num", "first", "people", "controls")
LARGEST_UNIT = 64
_UNITS = 64  # at least so many, so that machines that begin late find work


class Picture(NamedTuple):
    """One picture to be made: its job and its number there."""

    job: Job
    number: int


class Plan:
    """All pictures, those that share a program, a person and a head next to each other; units are
    runs of `size` of them.

    A function of the jobs and the size of a unit alone: every machine has the same. groups: how
    many programs and sets of settings there are; pictures of different ones are not made together.
    """

    def __init__(self, jobs: Sequence[Job], size: int | None = None):
        keys = _keys(jobs)
        self.groups = len({program for program, *_ in keys})
        self.jobs = [job for _, job in sorted(zip(keys, jobs), key=lambda pair: pair[0])]
        self._ends = list(itertools.accumulate(len(job.pictures) for job in self.jobs))
        self.total = self._ends[-1]
        self.size = size or max(1, min(LARGEST_UNIT, self.total // _UNITS))
        self.units = -(-self.total // self.size)

    def unit(self, number: int) -> Iterator[Picture]:
        """The pictures of a unit."""
        start, stop = number * self.size, min((number + 1) * self.size, self.total)
        at = bisect.bisect_right(self._ends, start)
        while start < stop:
            job, begin = self.jobs[at], self._ends[at] - len(self.jobs[at].pictures)
            end = min(stop, self._ends[at])
            yield from (Picture(job, job.pictures[i - begin]) for i in range(start, end))
            start, at = end, at + 1


def _keys(jobs: Sequence[Job]) -> list[tuple[int, int, int, int]]:
    """By what jobs are sorted: program, people, heads, each in the order in which they first come,
    then the job.
    """
    seen: dict = {}
    rank = lambda thing: seen.setdefault(thing, len(seen))
    keys = []
    for job in jobs:
        people, controls = job.options["people"], job.options["controls"]
        program = json.dumps(
            [
                {name: value for name, value in job.options.items() if name not in _OWN},
                len(people),
                [(control["name"], control.get("strength")) for control in controls],
            ],
            sort_keys=True,
        )
        who = tuple((one["reference"], one["face"]) for one in people)
        heads = tuple(_head(one["head"]) for one in people)
        keys.append((rank(program), rank(who), rank((who, heads)), job.number))
    return keys


def _head(head: WantedHead | None):
    # Equal heads of a jobs file are one object, see `check.Checker`.
    return None if head is None else id(head)
