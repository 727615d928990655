"""Whether an image is black-and-white, or has the background color, that its prompt asks for."""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, Shown, own_values
from caphuman_jax.evaluation.prompt_suite import asked_background, asks_without_color
from caphuman_jax.face.colors import BACKGROUND, color_word

GREY_CHROMA = 6.0  # mean Lab chroma below which an image counts as black-and-white


def chroma(shown: Shown) -> float:
    """Mean chroma over the image, in Lab."""
    lab = cv2.cvtColor(shown.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return float(np.linalg.norm(lab[..., 1:], axis=-1).mean())


def background(shown: Shown) -> str | None:
    """The background's color word, or None without a face or with too little background."""
    colors = shown.colors
    if colors is None or colors[BACKGROUND, 3] <= 0.04:
        return None
    return color_word(colors[BACKGROUND, :3])


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
        answer["black_and_white"] = estimators.summary(
            right, grey_asked, chromas, person, seed, own_values(run, "chroma")
        ) | {
            "share_when_asked": float(np.mean(chromas[grey_asked > 0] < GREY_CHROMA)),
            "share_otherwise": float(np.mean(chromas[grey_asked == 0] < GREY_CHROMA)),
            "auc_of_chroma": estimators.auc(chromas[grey_asked == 0], chromas[grey_asked > 0]),
        }
    asked = np.array([asked_background(r.prompt) or "" for r in run.requests])
    shown = np.array([(o.measured.values["background"] or "").split(" ")[-1] for o in outcomes])
    kept = (asked != "") & np.array([o.measured.faces > 0 for o in outcomes])
    if kept.any():
        same = lambda a, m: float(np.mean(a == m))
        own = own_values(run, "background")
        if own is not None:
            own = np.array([(word or "").split(" ")[-1] for word in own])[kept]
        of = lambda color: kept & (asked == color)
        words = sorted(set(asked[kept]))
        count = lambda color: zip(*np.unique(shown[of(color)], return_counts=True))
        answer["background"] = estimators.summary(
            same, asked[kept], shown[kept], person[kept], seed, own
        ) | {
            "by_color": {c: same(asked[of(c)], shown[of(c)]) for c in words},
            "measured": {c: {w: int(n) for w, n in count(c)} for c in words},
        }
    return {"prompts": answer}


def _grey(run: Run) -> np.ndarray:
    """(N,) 1 where a picture is black-and-white exactly if that is requested, otherwise 0."""
    asked = np.array([asks_without_color(r.prompt) for r in run.requests])
    shown = np.array([o.measured.values["chroma"] for o in run.outcomes]) < GREY_CHROMA
    return (asked == shown).astype(float)


def _background(run: Run) -> np.ndarray:
    """(N,) 1 where the background has the color that is requested, 0 where it has another, NaN
    where none is requested or there is no face.
    """
    answer = np.full(len(run.outcomes), np.nan)
    for i, outcome in enumerate(run.outcomes):
        asked = asked_background(outcome.request.prompt) if outcome.request else None
        if asked and outcome.measured.faces:
            answer[i] = (outcome.measured.values["background"] or "").split(" ")[-1] == asked
    return answer


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "prompt-black-and-white",
            "black-and-white exactly when asked for",
            "prompts.black_and_white",
            "up",
            f"Share of the pictures whose mean chroma in Lab is below {GREY_CHROMA:g} exactly if "
            "the prompt asks for black-and-white.",
            "CIE Lab",
            "share",
            _grey,
        ),
        Measure(
            "prompt-background",
            "background of the color asked for",
            "prompts.background",
            "up",
            "Share of the pictures with a face whose background has the color that the prompt "
            'names ("dark blue" counts as blue).',
            "MediaPipe selfie segmentation, and the nearest of 18 color words in Lab",
            "share",
            _background,
        ),
    ),
    requests_only=True,
    reads={"chroma": chroma, "background": background},
    order=70,
)
