"""Networks that the user brings to judge pictures with, by the name that their vectors have in
`ImageMeasurement.values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from caphuman_jax.evaluation import clip_judge
from caphuman_jax.evaluation.inception_judge import InceptionJudge
from caphuman_jax.evaluation.metrics import clip_score, inception_distance


class Judge(Protocol):
    """A network that looks at pictures.

    Attributes:
        sha256: which one it is.
    """

    sha256: str

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D) float32 of images (H, W, 3) uint8 of one size."""
        ...


Judges = Mapping[str, Judge]
CLIP, INCEPTION = clip_score.VALUE, inception_distance.VALUE


def find(model: Path, clip: Path | None, inception: Path | None) -> dict[str, Judge]:
    """The judges that there are.

    Args:
        model: the model folder, which may hold a CLIP with its projections.
        clip: another CLIP with its projections, or None.
        inception: Inception's weights, or None.

    Raises:
        ModelFolderError: one of them cannot be read.
    """
    judges: dict[str, Judge] = {}
    if (found := clip_judge.find(clip, model)) is not None:
        judges[CLIP] = found
    if inception is not None:
        judges[INCEPTION] = InceptionJudge(inception)
    return judges


def facts(judges: Judges) -> dict[str, str | None]:
    """{judge: which one it is, or None}."""
    return {name: judges[name].sha256 if name in judges else None for name in (CLIP, INCEPTION)}
