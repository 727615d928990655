"""What records say of one another: unique keys, nobody in two splits, partners."""

from __future__ import annotations

import numpy as np

from data_pipeline.inspect.problem import Problem


def check_keys(found, place, key_of):
    """Keys that occur twice, and people who are in two splits."""
    splits = list(found)
    keys = np.concatenate([found[split][0] for split in splits])
    persons = np.concatenate([found[split][1] for split in splits])
    owner = np.repeat(np.arange(len(splits)), [len(found[split][0]) for split in splits])
    index = np.concatenate([np.arange(len(found[split][0])) for split in splits])
    where = lambda row: place[splits[owner[row]]](index[row])
    order = np.argsort(keys, kind="stable")
    for before, row in zip(order[:-1][_twins(keys[order])], order[1:][_twins(keys[order])]):
        file, number = where(row)
        first, first_number = where(before)
        yield Problem(
            file,
            number,
            key_of(file, number),
            "key",
            f"is also that of record {first_number} of {first}",
        )
    order = np.lexsort((owner, persons))
    strangers = _twins(persons[order]) & (owner[order][1:] != owner[order][:-1])
    for before, row in zip(order[:-1][strangers], order[1:][strangers]):
        file, number = where(row)
        person = key_of(file, number, "person")
        yield Problem(
            file,
            number,
            key_of(file, number),
            "person",
            f"{person!r} is also in the split {splits[owner[before]]}",
        )


def _twins(ordered):
    return (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)


def check_partners(keys, persons, partners, place, key_of, complete):
    """Partners are other records of the split, show the same person, and name one another unless
    their own lists are full.
    """

    def problem(row, what):
        file, number = place(row)
        return Problem(file, number, key_of(file, number), "partners", what)

    for slot in range(partners.shape[1]):
        named = np.flatnonzero(partners[:, slot] >= 0)
        other = partners[named, slot]
        beyond = (other >= len(keys)) if complete else np.zeros(len(named), bool)
        for row in named[beyond | (other == named)]:
            yield problem(
                row,
                f"names record {partners[row, slot]} of {len(keys)}"
                + (", itself" if partners[row, slot] == row else ""),
            )
        sound = (other < len(keys)) & (other != named)
        named, other = named[sound], other[sound]
        known = keys[other] != 0 if complete else np.zeros(len(named), bool)
        back = np.any(partners[other] == named[:, None], axis=1) | np.all(
            partners[other] >= 0, axis=1
        )
        for row in named[known & ~back]:
            yield problem(row, f"names record {partners[row, slot]}, which does not name it")
        differ = (persons[other] != persons[named]) & (persons[other] != 0) & (persons[named] != 0)
        for row in named[known & differ]:
            yield problem(row, f"names record {partners[row, slot]}, which shows another person")
