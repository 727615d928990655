"""Batches of one size, so that one compiled program serves any number of items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def filled_up(items: Sequence[T], size: int) -> list[T]:
    """The items, and the last one again until there are `size`."""
    return [*items, *[items[-1]] * (size - len(items))]


def batches(items: Sequence[T], size: int) -> Iterator[tuple[list[T], list[T]]]:
    """Cut items into batches.

    Args:
        items: any number of them.
        size: of a batch.

    Yields:
        The items of a batch, and the same filled up to `size`.
    """
    for start in range(0, len(items), size):
        part = list(items[start : start + size])
        yield part, filled_up(part, size)
