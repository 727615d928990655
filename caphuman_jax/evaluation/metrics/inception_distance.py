"""FID and KID between the pictures and the reference photos, where the user gives Inception's
weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run

VALUE = "inception"
"""Name of a picture's features in `ImageMeasurement.values`."""
_FEWEST = 10  # pictures and people


def compute(run: Run) -> dict[str, Any]:
    """inception.{fid, kid}; their values are NaN without the weights, and with too few pictures.

    Without intervals: people who are drawn twice make both distances larger.
    """
    known = [s.values[VALUE] for s in run.subjects if VALUE in s.values]
    made = [o.measured.values[VALUE] for o in run.outcomes if VALUE in o.measured.values]
    copied = [
        run.subjects[o.person].values[VALUE]
        for o in run.outcomes
        if VALUE in run.subjects[o.person].values
    ]
    if len(known) < _FEWEST or len(made) < _FEWEST:
        missing = {"value": float("nan")}
        return {"inception": {"fid": missing, "kid": missing}}
    references, pictures, copies = (
        np.stack(part).astype(np.float64) for part in (known, made, copied)
    )
    return {
        "inception": {
            name: {"value": of(pictures, references), "copied": of(copies, references)}
            for name, of in (
                ("fid", estimators.frechet_distance),
                ("kid", estimators.kernel_distance),
            )
        }
    }


_SAME = "of the pictures and the reference photos as the model frames them, on Inception's features"
_FEW = (
    "It falls with the number of pictures; compare runs of equal numbers only, and not with "
    "figures of other photos."
)
_NEEDS = "Inception's weights: --inception FILE"
METRIC = Metric(
    compute,
    measures=(
        Measure(
            "fid",
            "FID",
            "inception.fid",
            "down",
            f"Fréchet distance between Gaussians fitted to the features {_SAME}. {_FEW}",
            "Heusel et al., 2017, on Inception v3 of 2015-12-05",
            needs=_NEEDS,
        ),
        Measure(
            "kid",
            "KID",
            "inception.kid",
            "down",
            f"Unbiased squared maximum mean discrepancy {_SAME}, kernel (x·y/2048 + 1)³.",
            "Binkowski et al., 2018, on Inception v3 of 2015-12-05",
            needs=_NEEDS,
        ),
    ),
    requests_only=True,
    order=89,
)
