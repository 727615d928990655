"""Generated images with everything that they were made from, and how they are written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.head.base import HeadModel
from caphuman_jax.io.picture import Picture, PictureWriter
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.conditioning import Subject
from caphuman_jax.pipeline.contact_sheet import contact_sheet, edit_sheet


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
