"""Generated images with everything that they were made from, and how they are written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.head.base import HeadModel
from caphuman_jax.io.picture import Picture, PictureWriter
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.conditioning import Conditioning, Subject
from caphuman_jax.pipeline.contact_sheet import contact_sheet, edit_sheet
from caphuman_jax.pipeline.program import Row


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Images and what they were made from.

    Attributes:
        images: (N, H, W, 3) uint8 RGB.
        masks: (N, P, h, w) float32 in [0, 1], at latent size: where CapFace took each face to be.
        subjects: the P people in them; `person`, `head_source`, `head`, `hints` are those of the
            first.
        controls: {ControlNet: its picture (H, W, 3) uint8}.
        settings: everything that the images were made with, JSON types. A written picture also
            records its `index`.
        seconds: time by stage: analysis, compile, sampling.
        head_model: of the subjects' heads.
        canvas: of an edit, the part of the photo that was made again; images are then whole photos.
    """

    images: np.ndarray
    masks: np.ndarray
    subjects: tuple[Subject, ...]
    controls: dict[str, np.ndarray]
    settings: dict[str, Any]
    seconds: dict[str, float]
    head_model: HeadModel
    canvas: Canvas | None = None

    person = property(lambda self: self.subjects[0].person)
    head_source = property(lambda self: self.subjects[0].head_source)
    head = property(lambda self: self.subjects[0].head)
    hints = property(lambda self: self.subjects[0].hints)

    @property
    def pictures(self) -> list[Picture]:
        """The images as Pillow images, whose `save` writes the AI-generated mark and the
        settings.
        """
        first = self.settings["first_image"]
        return [
            Picture(image, {**self.settings, "index": first + i})
            for i, image in enumerate(self.images)
        ]

    def sheet(self) -> Picture:
        """A contact sheet of the run: reference, fitted head, wanted head, hints and images; of an
        edit its photo, mask, wanted head and images.
        """
        if self.canvas is None:
            parts = self.subjects, self.controls, self.images, self.settings
            return Picture(contact_sheet(self.head_model, *parts))
        parts = self.subjects, self.canvas, self.images, self.settings
        return Picture(edit_sheet(self.head_model, *parts))

    def save(self, folder: str | os.PathLike, overwrite: bool = False) -> list[Path]:
        """Write the images as FOLDER/picture_NN.png with the AI-generated mark and the settings.

        Args:
            folder: made if it does not exist.
            overwrite: begin at picture_00.png; otherwise numbers follow those that exist.

        Returns:
            The paths.

        Raises:
            CapHumanError: the folder cannot be written to.
        """
        writer = PictureWriter(folder, overwrite)
        return [writer.write(np.asarray(one), one.settings or {}) for one in self.pictures]


def collect(
    first: Conditioning,
    made: Iterable[tuple[Row, np.ndarray, np.ndarray]],
    seconds: dict[str, float],
    head_model: HeadModel,
    on_image: Callable[[np.ndarray, dict], object] | None,
    keep: int | None,
) -> Result:
    """The result of images as they are made.

    Args:
        first: the conditioning of the first.
        made: see `batches.make_images`.
        seconds: time by stage; may be filled in while the images are made.
        head_model: of the heads in them.
        on_image: called with each image and its settings.
        keep: how many of them the result has; None: all.
    """
    images, masks = [], []
    for (one, number), image, mask in made:
        if keep is None or len(images) < keep:
            images.append(image)
            masks.append(mask)
        if on_image is not None:
            on_image(image, {**one.settings, "index": number})
    return Result(
        np.stack(images),
        np.stack(masks),
        first.subjects,
        first.controls,
        first.settings,
        seconds,
        head_model,
        first.canvas,
    )
