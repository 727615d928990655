"""Images made in batches of one size, so that one compiled program serves any number of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from caphuman_jax.errors import CapHumanError
from caphuman_jax.pipeline.conditioning import Conditioning, Progress
from caphuman_jax.pipeline.program import Row
from caphuman_jax.runtime.fixed_batches import filled_up


def rows_of(conditionings: Iterable[Conditioning]) -> Iterator[Row]:
    """A row for each image of each conditioning."""
    return ((one, number) for one in conditionings for number in one.request.numbers)


def make_images(
    program: Callable[[Sequence[Row], Progress], tuple[jax.stages.Compiled, tuple]],
    detailed: Callable[[Sequence[Row], np.ndarray], np.ndarray],
    rows: Iterable[Row],
    total: int,
    batch: int,
    progress: Progress,
    seconds: dict[str, float],
) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
    """Make images, `batch` at a time.

    Args:
        program: of the rows of one batch, and its arguments.
        detailed: see `Pipeline.detailed`.
        rows: one for each image.
        total: how many rows there are.
        batch: images at a time; fewer if there are not as many.
        progress: see `conditioning.Progress`.
        seconds: gets the time by stage.

    Yields:
        Row, image (H, W, 3) uint8 and masks (P, h, w) once they are made.

    Raises:
        CapHumanError: an image contains numbers that are not finite.
    """
    count, rows, made = min(batch, total), iter(rows), 0
    started = time.perf_counter()
    while part := list(itertools.islice(rows, count)):
        filled = filled_up(part, count)
        run, arguments = program(filled, progress)
        if not made:
            seconds["compile"], started = time.perf_counter() - started, time.perf_counter()
            progress("pictures", 0, total)
        images, masks = (np.asarray(array) for array in run(*arguments))
        images = detailed(filled, images)
        check_finite(images[: len(part)])
        for row, image, mask in zip(part, images, masks):
            yield row, row[0].finish(to_bytes(image)), mask
        made += len(part)
        progress("pictures", made, total)
    seconds["sampling"] = time.perf_counter() - started


def check_finite(images: np.ndarray) -> None:
    """Raises CapHumanError for images that are not numbers, before they are written."""
    if not np.isfinite(images).all():
        raise CapHumanError(
            "the picture contains numbers that are not finite: the weights, a LoRA or the identity "
            "are damaged, or the precision does not suffice (--dtype float32, a lower "
            "guidance_scale); it was not written"
        )


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(images * 255).astype(np.uint8)
