"""What a face wears: linear probes on the recognizer's feature map, for captions.

Made here by logistic regression on 360 hand-labeled portraits; held-out area under the curve 0.94
(beard) to 0.99 (long hair), 0.98 for glasses. A drawing or painting is distinguished from a
photo in the same way. Nothing about a person's sex, age or origin is estimated."""

from __future__ import annotations

import functools
import io

import numpy as np

from caphuman_jax.face.onnx_runner import read_asset

DRAWING_SCORE = 3.5
"""Score of the probe "drawing" above which a picture is called drawn or painted. At 0 it called 53
of 773 ordinary photos drawn, of women far more often than of men; above 3 it called none of them
(the limit was chosen on them), and still 14 of 222 portraits from before 1947, most of these drawn
or painted (docs/notes/data.md).
"""


LIMITS = {
    "glasses": 1.5,
    "beard": 0.8,
    "moustache": 2.0,
    "long hair": 10.5,
    "drawing": DRAWING_SCORE,
}
"""Scores of the probes above which a caption says so, by eye on 246 portraits: at 0 the probes
called 5 of 53 people with glasses, 5 of 8 with a beard and 3 of 10 with a moustache who had none,
and most of those "with long hair" have hair of medium length.
"""


@functools.cache
def _probes() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    with np.load(io.BytesIO(read_asset("attribute_probes.npz"))) as file:
        return tuple(file["names"].tolist()), file["weights"].astype(np.float32), file["bias"]


def names() -> tuple[str, ...]:
    """Names of the attributes, in the order of `scores`."""
    return _probes()[0]


def scores(features: np.ndarray) -> np.ndarray:
    """(N, A) scores from feature maps (N, 49, 512) of `recognition.mobilefacenet`.

    The upper three rows below the topmost (eyes, hair) and the lower three (nose, mouth, chin) are
    averaged apart."""
    maps = np.asarray(features, np.float32).reshape(-1, 7, 7, 512)
    pooled = np.concatenate([maps[:, 1:4].mean((1, 2)), maps[:, 4:].mean((1, 2))], axis=1)
    _, weights, bias = _probes()
    return pooled @ weights.T + bias


def worn(scores: np.ndarray) -> dict[str, bool]:
    """{attribute: whether it is surely there} from its scores (A,), by `LIMITS`."""
    return {name: bool(score > LIMITS[name]) for name, score in zip(names(), scores)}
