"""Measures how well heads fit a folder of photos: docs/images/fit_histogram.png and the figures in
docs/notes/heads.md.

    python docs/make_fit_histogram.py --photos DIR [--count 300] [--seed 0] [--out FILE.png]

The picture holds numbers only, nothing of the photos.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caphuman_jax.errors import CapHumanError
from caphuman_jax.face import segmentation
from caphuman_jax.face.face import find_faces
from caphuman_jax.face.landmark_indices import FACE_OVAL, OUTER_EYE_CORNERS
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head.camera import project
from caphuman_jax.head.fitting import head_from_photo
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io.images import read_photo

# Landmarks of MediaPipe's face mesh by the part of the face that they belong to; the rest is
# "cheeks, forehead".
PARTS = {
    "outline": FACE_OVAL,
    "eyes": (
        33,
        7,
        163,
        144,
        145,
        153,
        154,
        155,
        133,
        173,
        157,
        158,
        159,
        160,
        161,
        246,
        263,
        249,
        390,
        373,
        374,
        380,
        381,
        382,
        362,
        398,
        384,
        385,
        386,
        387,
        388,
        466,
    ),
    "brows": (
        46,
        53,
        52,
        65,
        55,
        70,
        63,
        105,
        66,
        107,
        276,
        283,
        282,
        295,
        285,
        300,
        293,
        334,
        296,
        336,
    ),
    "lips": (
        61,
        146,
        91,
        181,
        84,
        17,
        314,
        405,
        321,
        375,
        291,
        185,
        40,
        39,
        37,
        0,
        267,
        269,
        270,
        409,
        78,
        95,
        88,
        178,
        87,
        14,
        317,
        402,
        318,
        324,
        308,
        191,
        80,
        81,
        82,
        13,
        312,
        311,
        310,
        415,
    ),
    "nose": (
        1,
        2,
        4,
        5,
        6,
        19,
        45,
        48,
        64,
        94,
        97,
        98,
        115,
        168,
        195,
        197,
        220,
        275,
        278,
        294,
        326,
        327,
        344,
        440,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--count", type=int, default=300, help="photos drawn from the folder; 0: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "images" / "fit_histogram.png"
    )
    args = parser.parse_args()
    files = sorted(
        path for path in args.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if args.count and args.count < len(files):
        files = sorted(
            np.random.default_rng(args.seed).choice(np.asarray(files), args.count, replace=False)
        )
    model = load_head()
    errors, seconds, faceless, failed, by_landmark, yaws = [], [], 0, [], [], []
    for path in files:
        image = read_photo(path)
        started = time.perf_counter()
        faces = find_faces(image)
        found = time.perf_counter()
        if not faces:
            faceless += 1
            continue
        face = faces[0]
        try:
            mask = segmentation.face_mask(segmentation.parse_face(face.landmarks, image.shape[:2]))
            head = head_from_photo(
                model,
                image,
                face.landmarks,
                model.expression_from_arkit(expression_names(), face.expression),
                mask,
            )
            seconds.append((found - started, time.perf_counter() - found))
        except CapHumanError as problem:
            failed.append(f"{path.name}: {problem}")
            continue
        distance = landmark_errors(model, head, face.landmarks)
        by_landmark.append(distance)
        errors.append(100 * np.median(distance[model.landmark_valid]))
        yaws.append(abs(float(head.angles[0])))
    report(
        model,
        len(files),
        faceless,
        failed,
        np.asarray(errors),
        np.asarray(seconds),
        np.asarray(by_landmark),
        np.asarray(yaws),
    )
    picture = histogram(np.asarray(errors))
    args.out.parent.mkdir(exist_ok=True)
    picture.save(args.out, optimize=True)
    print(args.out)


def landmark_errors(model, head, seen) -> np.ndarray:
    """Distance (478,) of each landmark of the head from where it was seen, over the distance of the
    outer eye corners.
    """
    points = project(
        model.landmarks(model.vertices(head.identity, head.expression)),
        head.rotation,
        head.scale,
        head.translation,
    )
    eyes = seen[list(OUTER_EYE_CORNERS), :2]
    return np.linalg.norm(np.asarray(points)[:, :2] - seen[:, :2], axis=1) / max(
        float(np.linalg.norm(eyes[0] - eyes[1])), 1e-3
    )


def report(model, photos, faceless, failed, errors, seconds, by_landmark, yaws) -> None:
    """The figures, as lines."""
    print(
        f"{photos} photos, {photos - faceless} with a face, {len(errors)} heads fitted, "
        f"{len(failed)} failed"
    )
    print(*failed, sep="\n", end="\n" if failed else "")
    print(
        f"median landmark error, % of the eye distance: median {np.median(errors):.2f}, 90 % below "
        f"{np.percentile(errors, 90):.2f}, "
        f"worst {errors.max():.2f}; {100 * np.mean(errors <= 2):.0f} % of heads at most 2"
    )
    print(
        f"turned less than 20°: median {np.median(errors[yaws < 20]):.2f} ({(yaws < 20).sum()} "
        f"heads); "
        + (
            f"more: {np.median(errors[yaws >= 20]):.2f} ({(yaws >= 20).sum()})"
            if (yaws >= 20).any()
            else "none more"
        )
    )
    warm = seconds[1:] if len(seconds) > 1 else seconds
    for name, column in zip(("finding the face", "fitting the head"), warm.T):
        print(
            f"{name}: median {np.median(column):.3f} s, 95 % below {np.percentile(column, 95):.3f} "
            f"s"
        )
    named = sorted({i for part in PARTS.values() for i in part})
    parts = {
        **PARTS,
        "cheeks, forehead": [i for i in range(468) if i not in named],
        "irises": range(468, 478),
    }
    for name, numbers in parts.items():
        numbers = [i for i in numbers if model.landmark_valid[i]]
        if numbers:
            print(f"  {name}: median {100 * np.median(by_landmark[:, numbers]):.2f}")


def histogram(errors: np.ndarray, width: int = 720, height: int = 320) -> Image.Image:
    """Bars of 0.1 % from 0 to 4 %, the last for all above; a line at 2 %."""
    edges = np.arange(0, 4.01, 0.1)
    counts, _ = np.histogram(np.minimum(errors, 3.95), edges)
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    left, right, top, bottom = 50, width - 20, 40, height - 50
    x = lambda value: left + (right - left) * value / 4
    y = lambda count: bottom - (bottom - top) * count / counts.max()
    for edge, count in zip(edges, counts):
        if count:
            pen.rectangle((x(edge) + 1, y(count), x(edge + 0.1) - 1, bottom), fill=(70, 110, 170))
    pen.line((left, bottom, right, bottom), fill="black")
    for value in range(5):
        pen.text((x(value) - 8, bottom + 6), f"{value} %" if value < 4 else "4+", "black", font)
    for value in (2.0, float(np.median(errors))):
        pen.line(
            (x(value), top - 6, x(value), bottom),
            fill=(200, 60, 40) if value == 2.0 else (20, 20, 20),
        )
    pen.text(
        (x(float(np.median(errors))) + 5, top - 8),
        f"median {np.median(errors):.2f} %",
        "black",
        font,
    )
    pen.text((x(2) + 5, top + 8), "goal: median at most 2 %", (200, 60, 40), font)
    pen.text(
        (left, 6),
        f"Median landmark error over the distance of the outer eye corners, {len(errors)} photos",
        "black",
        font,
    )
    pen.text(
        (left, bottom + 26),
        "bars of 0.1 %; the tallest has " + f"{counts.max()} photos",
        "black",
        font,
    )
    return page


if __name__ == "__main__":
    main()
