"""Whether an image is black-and-white, or has the background color, that its prompt asks for."""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Metric, Run
from caphuman_jax.evaluation.prompt_suite import asked_background, asks_without_color
from caphuman_jax.face import segmentation
from caphuman_jax.face.colors import BACKGROUND, color_word, measure_colors

GREY_CHROMA = 6.0  # mean Lab chroma below which an image counts as black-and-white


def chroma(image: np.ndarray, landmarks: np.ndarray | None) -> float:
    """Mean chroma over the image, in Lab."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return float(np.linalg.norm(lab[..., 1:], axis=-1).mean())


def background(image: np.ndarray, landmarks: np.ndarray | None) -> str | None:
    """The background's color word, or None without a face or with too little background."""
    if landmarks is None:
        return None
    person = cv2.resize(segmentation.person_mask(image), (256, 256), interpolation=cv2.INTER_AREA)
    whole = np.array([0, 0, 1, 1], np.float32)
    colors = measure_colors(image, person, landmarks / image.shape[0], whole)
    return color_word(colors[BACKGROUND, :3]) if colors[BACKGROUND, 3] > 0.04 else None


def compute(run: Run) -> dict:
    """prompts.black_and_white: how often an image is black-and-white exactly when that is
    requested; prompts.background: of images whose prompt names a background color and that show a
    face, how often it is measured ("dark blue" counts as blue). Shuffled prompts give the chance.
    """
    outcomes, person, seed = run.outcomes, run.person, run.seed
    answer: dict = {}
    grey_asked = np.array([float(asks_without_color(r.prompt)) for r in run.requests])
    chromas = np.array([o.measured.values["chroma"] for o in outcomes])
    if 0 < grey_asked.mean() < 1:
        right = lambda a, m: float(np.mean(a == (m < GREY_CHROMA)))
        answer["black_and_white"] = estimators.summary(right, grey_asked, chromas, person, seed) | {
            "share_when_asked": float(np.mean(chromas[grey_asked > 0] < GREY_CHROMA)),
            "share_otherwise": float(np.mean(chromas[grey_asked == 0] < GREY_CHROMA)),
            "auc_of_chroma": estimators.auc(chromas[grey_asked == 0], chromas[grey_asked > 0]),
        }
    asked = np.array([asked_background(r.prompt) or "" for r in run.requests])
    shown = np.array([(o.measured.values["background"] or "").split(" ")[-1] for o in outcomes])
    kept = (asked != "") & np.array([o.measured.faces > 0 for o in outcomes])
    if kept.any():
        same = lambda a, m: float(np.mean(a == m))
        of = lambda color: kept & (asked == color)
        words = sorted(set(asked[kept]))
        count = lambda color: zip(*np.unique(shown[of(color)], return_counts=True))
        answer["background"] = estimators.summary(
            same, asked[kept], shown[kept], person[kept], seed
        ) | {
            "by_color": {c: same(asked[of(c)], shown[of(c)]) for c in words},
            "measured": {c: {w: int(n) for w, n in count(c)} for c in words},
        }
    return {"prompts": answer}


METRIC = Metric(compute, requests_only=True, measures={"chroma": chroma, "background": background})
