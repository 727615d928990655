"""Small faces of a picture, sampled again at the size that the model makes best.

The places of the heads are known, so nothing is detected: each small face is cut out around its
head and enlarged, its head is moved into that crop, sampling begins with the crop at the noise
level that `detail` gives, and the result goes back where CapFace says that the face is. This is
ADetailer's idea without its detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import jax
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.face import align
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.editing import position_of
from caphuman_jax.head.hints import fit_to_size, render_hints
from caphuman_jax.head.landmarks68 import landmark_picture
from caphuman_jax.head.lighting import landmarks_in_picture
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.conditioning import Conditioning, Subject, shows_landmarks
from caphuman_jax.pipeline.edit_mask import feathered
from caphuman_jax.pipeline.image_batches import to_bytes
from caphuman_jax.pipeline.paste import paste
from caphuman_jax.pipeline.program import Row
from caphuman_jax.pipeline.request import EditRequest

SMALL = 0.4
"""Faces whose height is below this part of the model's image size are small."""
# Parts of the crop's side: how far the pasted part reaches beyond CapFace's mask, and how far it
# fades.
_GROWN, _FEATHER = 0.01, 0.05


def detailed(
    rows: Sequence[Row],
    images: np.ndarray,
    head_model: HeadModel,
    config: ModelConfig,
    with_latents: Callable[[Conditioning], Conditioning],
    make: Callable[[Sequence[Row]], tuple[jax.Array, jax.Array]],
) -> np.ndarray:
    """The images with their small faces sampled again, those of all images in one batch.

    Args:
        rows: of the images; their conditionings have equal `batch_key`s.
        images: (B, H, W, 3) float32 in [0, 1].
        head_model: of the heads.
        config: the model's.
        with_latents: adds what the diffusion networks take of a conditioning's canvas.
        make: rows → images and CapFace's masks, see `Pipeline.make`.

    Returns:
        Images like `images`: not finite where one of its faces is not, and as they were where no
        face is small or the image is not finite.
    """
    faces = [
        (at, with_latents(face), number)
        for at, ((one, number), image) in enumerate(zip(rows, images))
        if np.isfinite(image).all()
        for face in enlarged_faces(one, to_bytes(image), head_model, config)
    ]
    if not faces:
        return images
    # As many as there can be, so that pictures with one small face or with several share a program.
    people = max(1, len(rows[0][0].subjects))
    filled = [*faces, *[faces[-1]] * (people * len(rows) - len(faces))]
    made, masks = (np.asarray(array) for array in make([(face, n) for _, face, n in filled]))
    images = np.array(images)
    for (at, face, _), crop, mask in zip(faces, made, masks):
        if not np.isfinite(crop).all():
            images[at] = np.nan
        elif np.isfinite(images[at]).all():
            assert face.canvas is not None, "of `enlarged_faces`"
            whole = to_bytes(images[at])
            canvas = dataclasses.replace(
                face.canvas, photo=whole, mask=pasted_mask(mask[0], len(crop))
            )
            images[at] = paste(canvas, to_bytes(crop)).astype(np.float32) / 255
    return images


def enlarged_faces(
    conditioning: Conditioning, image: np.ndarray, head_model: HeadModel, config: ModelConfig
) -> list[Conditioning]:
    """A conditioning for each small face of an image, the farthest first.

    Args:
        conditioning: of the image.
        image: (H, W, 3) uint8.
        head_model: of the heads.
        config: the model's.

    Returns:
        Conditionings whose canvas is the face's crop, (S, S) pixels, all of which is sampled; their
        heads stand in that crop.
    """
    request, (height, width) = conditioning.request, image.shape[:2]
    side, found = config.image_size, []
    steps, share = request.params.coefficients(config).steps, request.params.detail
    if int(steps * share) == 0:
        share = min(1.5 / steps, 1.0)  # one step at least
    for number, (subject, asked) in enumerate(zip(conditioning.subjects, request.subjects)):
        head = fit_to_size(subject.head, height, width)
        x, y, size = position_of(head_model, head)
        if size * height >= SMALL * side or not (0 <= x <= 1 and 0 <= y <= 1):
            continue
        center, length = head_square(landmarks_in_picture(head_model, head))
        crop, place, _ = crop_square(image, center, length, side)
        moved = transform_head(head, head_model, place, side, side)
        shown = Subject(
            subject.person,
            subject.head_source,
            moved,
            np.asarray(render_hints(head_model, moved, side, side)),
        )
        params = dataclasses.replace(
            request.params,
            denoise=share,
            size=(side, side),
            seed=(request.params.seed + 1 + number) % 2**32,
        )
        alone = dataclasses.replace(asked, prompt=None, box=None, mask=None)
        own = dataclasses.replace(
            request, params=params, subjects=(alone,), edit=EditRequest(image, mask="whole")
        )
        prompts = conditioning.prompts
        if conditioning.regions is not None and prompts is not None:
            _, negative, *words = prompts  # a crop shows one person, in their own words
            prompts = words[number], negative
        canvas = Canvas(image, place, crop, np.ones((side, side), np.float32))
        controls = {
            control.name: landmark_picture(head_model, [moved], side, side)
            if shows_landmarks(control.picture)
            else align.warp(conditioning.controls[control.name], place, side, border="repeat")
            for control in request.controls
        }
        face = dataclasses.replace(
            conditioning,
            request=own,
            prompts=prompts,
            regions=None,
            subjects=(shown,),
            controls=controls,
            canvas=canvas,
            latents={},
        )
        found.append((float(head.scale), face))
    return [face for _, face in sorted(found, key=lambda pair: pair[0])]


def pasted_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """(S, S) float32 in [0, 1]: where a crop of S = `side` pixels is pasted; `mask`: CapFace's
    (h, w) for it.
    """
    covered = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR) > 0.5
    return feathered(covered, _GROWN * side, _FEATHER * side)
