"""The `small-faces` suite: how well faces of several sizes keep identity and pose, as they are made
and sampled again with `detail`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.metrics import identity
from caphuman_jax.evaluation.metrics.base import Goal, Run
from caphuman_jax.evaluation.outcome import HeadParams, Outcome, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.evaluation.report import sheet
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.head.lighting import landmarks_in_picture
from caphuman_jax.io import metadata
from caphuman_jax.io.images import write_png
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.small_faces import SMALL

GOALS = (
    Goal(
        "64 px with detail: right person first among 50 (dlib), less that of 160 px",
        "small_faces.64_less_160",
        ">=",
        0.0,
    ),
    Goal("64 px with detail: yaw error, median, degrees", "small_faces.64_detail.yaw", "<=", 3.5),
)
_PROMPT = "a photo of a person"
_MADE_FOR = 256
_PEOPLE_A_SHEET = 10


@dataclasses.dataclass(frozen=True)
class Made:
    """A picture: the size of its face, whether that was sampled again, and what was measured."""

    size: int
    detail: bool
    outcome: Outcome


def conditions(sizes: Sequence[int], detail: float) -> list[tuple[int, float]]:
    """(size, detail) of all that is made: small faces also with detail."""
    small = [size for size in sizes if size < SMALL * _MADE_FOR]
    return [(size, 0.0) for size in sizes] + [(size, detail) for size in small]


def run_small_faces(
    pipe: Pipeline,
    photos: Sequence[Photo],
    subjects: Sequence[Subject],
    folder: Path,
    *,
    sizes: Sequence[int],
    per_person: int = 1,
    seed: int = 0,
    detail: float = 0.45,
    **sampling: Any,
) -> list[Made]:
    """Make pictures of each person with faces of several sizes, and measure each face in the square
    around its place. Writes sheets small_faces_NN.png of these squares.

    Args:
        pipe: makes the pictures.
        photos: not used; the suites share their arguments.
        subjects: the people.
        folder: of the report.
        sizes: heights of faces, chin to hairline, in pixels of a model that makes 256; others in
            proportion.
        per_person: pictures of each person, of the `conditions` in turn.
        seed: of the first person's pictures.
        detail: see `SamplingParams`.
        sampling: other fields of `SamplingParams`.
    """
    del photos
    every, model, side = conditions(sizes, detail), pipe.head_model, pipe.config.image_size
    made, rows = [], []
    plan = [(person, i) for person in range(len(subjects)) for i in range(per_person)]
    for number, (person, i) in enumerate(tqdm(plan, desc="pictures", unit="picture")):
        subject = subjects[person]
        size, share = every[(person * per_person + i) % len(every)]
        head = {"position": (0.5, 0.5, size / _MADE_FOR)}
        result = pipe(
            reference=subject.person,
            prompt=_PROMPT,
            head=head,
            seed=seed + person,
            detail=share,
            **sampling,
        )
        center, length = head_square(landmarks_in_picture(model, result.head))
        square, _, _ = crop_square(result.images[0], center, length, side)
        (measured,) = measure_images(model, [square])
        text = f"{size} px" + (f", detail {share:g}" if share else "")
        request = Request(number, person, text, _PROMPT, seed + person)
        asked, own = (HeadParams.of(model, h) for h in (result.head, subject.head))
        made.append(Made(size, bool(share), Outcome(request, person, asked, own, measured)))
        rows += [] if i else [[(subject.picture, subject.name, "")]]
        rows[-1].append((square, text, ""))
    for start in range(0, len(rows), _PEOPLE_A_SHEET):
        name = f"small_faces_{start // _PEOPLE_A_SHEET:02d}.png"
        write_png(folder / name, sheet(rows[start : start + _PEOPLE_A_SHEET]), metadata.metadata())
    return made


def compute(pipe: Pipeline, subjects: Sequence[Subject], made: Sequence[Made]) -> dict[str, Any]:
    """small_faces.{SIZE, SIZE_detail}: pictures; faces, the share with one; rank1 (right person
    first among 50, dlib); distance to the own photo (dlib), yaw error in degrees, medians.
    """
    results: dict[str, Any] = {}
    for size, detail in dict.fromkeys((one.size, one.detail) for one in made):
        outcomes = [one.outcome for one in made if (one.size, one.detail) == (size, detail)]
        found = [outcome for outcome in outcomes if outcome.measured.faces]
        yaw = [abs(o.asked.angles[0] - o.measured.head.angles[0]) for o in found]
        run = Run(pipe.head_model, subjects, outcomes)
        dlib = identity.compute(run)["identity"]["dlib"]
        results[f"{size}_detail" if detail else str(size)] = {
            "pictures": len(outcomes),
            "faces": len(found) / len(outcomes),
            "rank1": dlib[f"rank1_among_{identity.RANKED_AMONG}"]["value"],
            "distance": dlib["own_distance"]["median"],
            "yaw": float(np.median(yaw)) if yaw else float("nan"),
        }
    rank = lambda name: results.get(name, {}).get("rank1", float("nan"))
    results["64_less_160"] = rank("64_detail") - rank("160")
    results.setdefault("64_detail", {"yaw": float("nan")})
    return {"pictures": len(made), "small_faces": results}
