"""How surely an image shows its own reference person rather than another person of the run."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Goal,
    Metric,
    Row,
    Run,
    different_people,
    mean,
    share,
    unit,
)
from caphuman_jax.evaluation.outcome import RECOGNIZERS

RANKED_AMONG = 50
_CONDITIONED_ON = "mobilefacenet"  # models see its vectors, so its own figures are flattering


def compute(run: Run) -> dict:
    """identity.RECOGNIZER: by Euclidean distance, and by cosine after the mean of the reference
    vectors is subtracted from both sides, since raw cosines of dlib's vectors are all near 1.
    """
    return {"identity": {name: _identity(run, name) for name in RECOGNIZERS}}


def _identity(run: Run, recognizer: str) -> dict:
    person, subjects, seed = run.person, run.subjects, run.seed
    references = np.stack([s.vectors[recognizer] for s in subjects]).astype(np.float64)
    results = np.stack([o.measured.vectors[recognizer] for o in run.outcomes]).astype(np.float64)
    comparable = different_people(subjects)[person]
    distance = np.linalg.norm(results[:, None] - references[None], axis=-1)
    center = references.mean(axis=0) if len(references) > 1 else 0.0
    cosine = unit(results - center) @ unit(references - center).T
    others = comparable & np.isfinite(distance)
    others[np.arange(len(person)), person] = False
    own = np.take_along_axis(cosine, person[:, None], axis=1)[:, 0]
    answer = {
        "conditioned_on": recognizer == _CONDITIONED_ON,
        "auc": _auc(distance, person, comparable, seed),
        "auc_centered_cosine": _auc(-cosine, person, comparable, seed),
        "own_distance": _quantiles(distance[np.arange(len(person)), person]),
        "other_distance": _quantiles(distance[others]),
        "own_centered_cosine": _quantiles(own),
        "other_centered_cosine": _quantiles(cosine[others]),
        "pairs_left_out_as_same_person": int((~different_people(subjects)).sum() // 2),
    }
    nearer, count = estimators.closer_people(distance, person, comparable)
    for key, among in (("rank1_among_all", None), (f"rank1_among_{RANKED_AMONG}", RANKED_AMONG)):
        chances = estimators.rank_one(nearer, count, among)
        by_chance = (
            np.nan
            if among and not np.isfinite(chances).any()
            else 1 / among
            if among
            else float(np.mean(1 / (count + 1)))
        )
        answer[key] = {
            "value": mean(chances),
            "interval": estimators.interval(mean, [chances], person, seed),
            "chance": by_chance,
        }
    return answer


def _auc(distance, person, comparable, seed):
    wins, possible = estimators.people_auc(distance, person, comparable)
    return {
        "value": share(wins, possible),
        "interval": estimators.ratio_interval(wins, possible, seed),
        "chance": 0.5,
    }


def _quantiles(values):
    values = values[np.isfinite(values)]
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)) if len(values) else [float("nan")] * 3
    return {"tenth": float(low), "median": float(middle), "ninetieth": float(high)}


def _rows():
    for name in RECOGNIZERS:
        shown = f"{name}, conditioned on" if name == _CONDITIONED_ON else name
        place = f"identity.{name}."
        yield Row(f"identity AUC ({shown})", place + "auc")
        yield Row(f"identity AUC by centered cosine ({shown})", place + "auc_centered_cosine")
        yield Row(f"rank-1 among all ({shown})", place + "rank1_among_all", percent=True)
        yield Row(
            f"rank-1 among {RANKED_AMONG} ({shown})",
            place + f"rank1_among_{RANKED_AMONG}",
            percent=True,
        )


METRIC = Metric(
    compute,
    rows=tuple(_rows()),
    goals=(
        Goal("identity AUC (dlib)", "identity.dlib.auc.value", ">=", 0.90, "people"),
        Goal(
            f"rank-1 among {RANKED_AMONG} people (dlib)",
            f"identity.dlib.rank1_among_{RANKED_AMONG}.value",
            ">=",
            0.40,
            "people",
        ),
    ),
    previews={
        "identity_rank1": "identity.dlib.rank1_among_all.value",
        "identity_auc": "identity.dlib.auc.value",
    },
)
