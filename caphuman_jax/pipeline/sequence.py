"""Requests for the heads of a sequence, all of one person."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from caphuman_jax.errors import HeadError, SettingError
from caphuman_jax.head.base import HeadModel
from caphuman_jax.pipeline.conditioning import Subject
from caphuman_jax.pipeline.request import Request


def of_sequence(request: Request, rows: Sequence[Mapping], model: HeadModel) -> list[Request]:
    """A request for each row of numbers, in which they replace those that the request asks for.

    Args:
        request: for one person.
        rows: see `head.sequence.read_table`.
        model: the head model.

    Raises:
        SettingError: a request for several people, or no rows.
        HeadError: wrong numbers, with the row's number from 1.
    """
    if len(request.subjects) != 1:
        raise SettingError("a sequence of heads is for one person")
    if not rows:
        raise SettingError("the sequence has no heads")
    (subject,) = request.subjects
    requests = []
    for i, row in enumerate(rows, 1):
        try:
            head = subject.head.with_numbers(row)
            head.check(model)
        except HeadError as problem:
            raise HeadError(f"row {i} of the sequence: {problem}") from problem
        one = dataclasses.replace(subject, head=head)
        requests.append(dataclasses.replace(request, subjects=(one,)))
    return requests


def with_measured(request: Request, subjects: Sequence[Subject]) -> Request:
    """The request with people in place of their photos.

    Args:
        request: for the same people as `subjects`, in the same order.
        subjects: they, measured.
    """
    measured = []
    for one, subject in zip(request.subjects, subjects):
        head = one.head
        if head.photo is not None:
            head = dataclasses.replace(head, photo=subject.head_source)
        measured.append(dataclasses.replace(one, references=(subject.person,), head=head))
    return dataclasses.replace(request, subjects=tuple(measured))
