"""The `edit` suite: photos with their heads changed, measured as generated images are, and what
became of the photo outside the mask and at its edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from caphuman_jax.evaluation import statistics
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.metrics.base import Goal
from caphuman_jax.evaluation.metrics.expression import smile_and_jaw
from caphuman_jax.evaluation.outcome import HeadParams, Outcome, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.evaluation.report import sheet
from caphuman_jax.face import align
from caphuman_jax.io import metadata
from caphuman_jax.io.images import write_png
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.pipeline import Pipeline

GOALS = (
    Goal("right person first among 50 (dlib)", "identity.dlib.rank1_among_50.value", ">=", 0.98),
    Goal("yaw error, median, degrees", "edit.yaw", "<=", 2.0),
    Goal("pitch error, median, degrees", "edit.pitch", "<=", 3.5),
    Goal("smile correlation", "expression.smile.all.correlation.value", ">=", 0.8),
    Goal("pixels changed outside the mask", "edit.changed_outside", "<=", 0),
    Goal("seam, over the photo's own", "edit.seam", "<=", 1.3),
)
_ROWS_A_SHEET = 10
_CHANGED = 0.2  # weight of an expression


@dataclasses.dataclass(frozen=True)
class Edit:
    """What became of a photo.

    Attributes:
        outcome: measured in the head's square, as the model frames it.
        changed_outside: number of pixels that differ where the mask is 0.
        seam: see `seam`.
    """

    outcome: Outcome
    changed_outside: int
    seam: float


def run_edits(
    pipe: Pipeline,
    photos: Sequence[Photo],
    subjects: Sequence[Subject],
    folder: Path,
    *,
    changes: Sequence[Mapping[str, Any]],
    per_person: int = 1,
    seed: int = 0,
    **sampling: Any,
) -> list[Edit]:
    """Edit each person's photo and measure it. Writes sheets edits_NN.png (before, mask, after).

    Args:
        pipe: edits.
        photos: of the subjects, in their order.
        subjects: the people.
        folder: of the report.
        changes: of heads, one after the other over the people. Angles are added to the photo's own.
        per_person: edits of each person.
        seed: of the first edit's noise.
        sampling: other fields of `SamplingParams`.
    """
    edits, rows, sheets = [], [], 0
    plan = [(person, i) for person in range(len(subjects)) for i in range(per_person)]
    for number, (person, i) in enumerate(tqdm(plan, desc="edits", unit="edit")):
        subject, change = subjects[person], changes[(person * per_person + i) % len(changes)]
        own = dict(zip(("yaw", "pitch", "roll"), map(float, np.asarray(subject.head.angles))))
        head = {n: own[n] + value if n in own else value for n, value in change.items()}
        result = pipe.edit(
            photos[person].source(), face=0, head=head, seed=seed + number, **sampling
        )
        canvas, after = result.canvas, result.images[0]
        assert canvas is not None
        place, side = result.person.place, len(result.person.square)
        square = align.warp(after, place, side, border="repeat")
        (measured,) = measure_images(pipe.head_model, [square])
        text = ", ".join(f"{name} {value}" for name, value in change.items())
        asked = HeadParams.of(pipe.head_model, result.head)
        before = HeadParams.of(pipe.head_model, subject.head)
        request = Request(number, person, text, result.settings["prompt"], seed + number)
        outcome = Outcome(request, person, asked, before, measured)
        outside = ~reaches(canvas)
        count = int((after != canvas.photo).any(axis=-1)[outside].sum())
        edits.append(Edit(outcome, count, seam(canvas, after)))
        mask = np.rint(canvas.changed * 255).astype(np.uint8)
        picture = lambda image: align.warp(image, canvas.place, mask.shape, border="repeat")
        rows.append(
            [
                (canvas.image, subject.name, ""),
                (np.repeat(mask[..., None], 3, axis=-1), "mask", ""),
                (picture(after), text, ""),
            ]
        )
        if len(rows) == 3 * _ROWS_A_SHEET or number == len(plan) - 1:
            lines = [sum(rows[j : j + 3], []) for j in range(0, len(rows), 3)]
            name = f"edits_{sheets:02d}.png"
            write_png(folder / name, sheet(lines), metadata.metadata())
            rows, sheets = [], sheets + 1
    return edits


def reaches(canvas: Canvas) -> np.ndarray:
    """(H, W) bool: the photo's pixels that the mask reaches, at its own resolution."""
    height, width = canvas.photo.shape[:2]
    if canvas.photo_mask is not None:
        return canvas.photo_mask > 0
    changed = (canvas.changed > 0).astype(np.uint8)
    changed = cv2.dilate(changed, np.ones((3, 3), np.uint8)).astype(np.float32)
    back = align.invert(canvas.place)
    return align.warp(changed, back, (height, width)) > 0


def seam(canvas: Canvas, after: np.ndarray) -> float:
    """Mean change of brightness across the mask's edge, over that of what stood there before
    sampling: 1 for an edge that cannot be seen.

    Args:
        canvas: of the edit.
        after: (H, W, 3) uint8, the edited photo.
    """
    inwards = np.stack(np.gradient(cv2.GaussianBlur(canvas.mask, (0, 0), 1.0)), axis=-1)
    length = np.linalg.norm(inwards, axis=-1)
    edge = (canvas.mask > 0.02) & (canvas.mask < 0.98) & (length > 1e-3)
    if not edge.any():
        return float("nan")
    normal = inwards / np.maximum(length, 1e-6)[..., None]

    def across(image):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        slope = np.stack(np.gradient(gray), axis=-1)
        return float(np.abs((slope * normal).sum(axis=-1))[edge].mean())

    made = align.warp(after, canvas.place, canvas.mask.shape, border="repeat")
    return across(made) / max(across(canvas.image), 1e-6)


def copied(asked: np.ndarray, measured: np.ndarray, own: np.ndarray) -> float:
    """How much of the photo's expression is left where another was asked for: the median over the
    edits of (measured − asked) / (own − asked). 0: it is the one asked for; 1: it is the photo's.

    Args:
        asked, measured, own: (N,) weights of an expression; edits that change it by less than
            `_CHANGED` do not count.
    """
    counts = (np.abs(own - asked) >= _CHANGED) & np.isfinite(measured)
    left = (measured - asked)[counts] / (own - asked)[counts]
    return float(np.median(left)) if len(left) else float("nan")


def compute(pipe: Pipeline, subjects: Sequence[Subject], edits: Sequence[Edit]) -> dict[str, Any]:
    """The metrics of generated images, and edit.{yaw, pitch, changed_outside, seam, copied_smile}:
    median errors in degrees over all edits, the largest number of changed pixels, the median seam,
    and `copied` of the smile.
    """
    outcomes = [edit.outcome for edit in edits]
    results = statistics.compute(pipe.head_model, subjects, outcomes)
    found = [outcome for outcome in outcomes if outcome.measured.faces]
    error = lambda i: [abs(o.asked.angles[i] - o.measured.head.angles[i]) for o in found]
    head = lambda o, part: o.measured.head if part == "measured" else getattr(o, part)
    smile = lambda part: smile_and_jaw(
        pipe.head_model, np.stack([head(o, part).expression for o in outcomes])
    )[0].mean(axis=1)
    median = lambda values: float(np.median(values)) if len(values) else float("nan")
    results["edit"] = {
        "edits": len(edits),
        "yaw": median(error(0)),
        "pitch": median(error(1)),
        "copied_smile": copied(*(smile(part) for part in ("asked", "measured", "own"))),
        "changed_outside": max(edit.changed_outside for edit in edits),
        "seam": median([edit.seam for edit in edits if np.isfinite(edit.seam)]),
    }
    return results
