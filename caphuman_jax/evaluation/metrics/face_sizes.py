"""Identity and pose by the size of the face that was asked for, as it was made and sampled again.

Only of requests whose head is "N px" or "N px, detail X", as the suite `small-faces` writes them.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from caphuman_jax.evaluation.metrics import identity
from caphuman_jax.evaluation.metrics.base import Metric, Run

_HEAD = re.compile(r"(\d+) px(, detail .+)?")


def compute(run: Run) -> dict[str, Any]:
    """small_faces.{SIZE, SIZE_detail}: pictures; faces, the share with one; rank1 (right person
    first among 50, dlib); distance to the own photo (dlib), yaw error in degrees, medians. {} where
    no size was asked for.
    """
    asked = [_HEAD.fullmatch(request.head) for request in run.requests]
    if not any(asked):
        return {}
    results: dict[str, Any] = {}
    names = [found and found[1] + ("_detail" if found[2] else "") for found in asked]
    for name in dict.fromkeys(filter(None, names)):
        outcomes = [outcome for outcome, own in zip(run.outcomes, names) if own == name]
        found = [outcome for outcome in outcomes if outcome.measured.faces]
        yaw = [abs(o.asked.angles[0] - o.measured.head.angles[0]) for o in found]
        part = dataclasses.replace(run, outcomes=outcomes)
        dlib = identity.compute(part)["identity"]["dlib"]
        results[name] = {
            "pictures": len(outcomes),
            "faces": len(found) / len(outcomes),
            "rank1": dlib[f"rank1_among_{identity.RANKED_AMONG}"]["value"],
            "distance": dlib["own_distance"]["median"],
            "yaw": float(np.median(yaw)) if yaw else float("nan"),
        }
    rank = lambda name: results.get(name, {}).get("rank1", float("nan"))
    results["64_less_160"] = rank("64_detail") - rank("160")
    results.setdefault("64_detail", {"yaw": float("nan")})
    return {"small_faces": results}


METRIC = Metric(compute, requests_only=True, order=92)
