"""How surely an image shows its own reference person rather than another person of the run."""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial.distance import cdist

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Goal,
    Measure,
    Metric,
    Run,
    averaged,
    copier,
    different_people,
    mean,
    share,
    unit,
)
from caphuman_jax.evaluation.outcome import ARCFACE, RECOGNIZERS

RANKED_AMONG = 50
_ALL = (*RECOGNIZERS, ARCFACE)
_CONDITIONED_ON = "mobilefacenet"  # models see its vectors, so its own figures are flattering


def compute(run: Run) -> dict:
    """identity.RECOGNIZER: by Euclidean distance, and by cosine after the mean of the reference
    vectors is subtracted from both sides, since raw cosines of dlib's vectors are all near 1.
    """
    return {"identity": {name: _identity(run, name) for name in _ALL if _knows(run, name)}}


def _knows(run: Run, recognizer: str) -> bool:
    """Whether all vectors of a recognizer are there."""
    parts = [*run.subjects, *(outcome.measured for outcome in run.outcomes)]
    return all(recognizer in part.vectors for part in parts)


def compared(run: Run, recognizer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Results (N) and reference photos (P): Euclidean distances (N, P), cosines (N, P) after the
    mean of the references is subtracted, and (N, P) whether the column may be compared.
    """
    references = np.stack([s.vectors[recognizer] for s in run.subjects]).astype(np.float64)
    results = np.stack([o.measured.vectors[recognizer] for o in run.outcomes]).astype(np.float64)
    distance = cdist(results, references)
    center = references.mean(axis=0) if len(references) > 1 else 0.0
    cosine = unit(results - center) @ unit(references - center).T
    return distance, cosine, different_people(run.subjects)[run.person]


def similarity(run: Run, recognizer: str) -> np.ndarray:
    """(N,) centered cosine of each result and its own reference photo."""
    if not _knows(run, recognizer):
        return np.full(len(run.outcomes), np.nan)
    cosine = compared(run, recognizer)[1]
    return np.take_along_axis(cosine, run.person[:, None], axis=1)[:, 0]


def rank_one(run: Run, recognizer: str, among: int | None) -> np.ndarray:
    """(N,) see `estimators.rank_one`."""
    if not _knows(run, recognizer):
        return np.full(len(run.outcomes), np.nan)
    distance, _, comparable = compared(run, recognizer)
    nearer, others = estimators.closer_people(distance, run.person, comparable)
    return estimators.rank_one(nearer, others, among)


def _identity(run: Run, recognizer: str) -> dict:
    person, seed = run.person, run.seed
    distance, cosine, comparable = compared(run, recognizer)
    copied, copied_cosine, _ = compared(copier(run), recognizer)
    others = comparable & np.isfinite(distance)
    others[np.arange(len(person)), person] = False
    own = np.take_along_axis(cosine, person[:, None], axis=1)[:, 0]
    answer = {
        "conditioned_on": recognizer == _CONDITIONED_ON,
        "similarity": averaged(run, functools.partial(similarity, recognizer=recognizer)),
        "auc": _auc(distance, copied, person, comparable, seed),
        "auc_centered_cosine": _auc(-cosine, -copied_cosine, person, comparable, seed),
        "own_distance": _quantiles(distance[np.arange(len(person)), person]),
        "other_distance": _quantiles(distance[others]),
        "own_centered_cosine": _quantiles(own),
        "other_centered_cosine": _quantiles(cosine[others]),
        "pairs_left_out_as_same_person": int((~different_people(run.subjects)).sum() // 2),
    }
    nearer, count = estimators.closer_people(distance, person, comparable)
    copies = estimators.closer_people(copied, person, comparable)
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
            "copied": mean(estimators.rank_one(*copies, among)),
        }
    return answer


def _auc(distance, copied, person, comparable, seed):
    wins, possible = estimators.people_auc(distance, person, comparable)
    return {
        "value": share(wins, possible),
        "interval": estimators.ratio_interval(wins, possible, seed),
        "chance": 0.5,
        "copied": share(*estimators.people_auc(copied, person, comparable)),
    }


def _quantiles(values):
    values = values[np.isfinite(values)]
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)) if len(values) else [float("nan")] * 3
    return {"tenth": float(low), "median": float(middle), "ninetieth": float(high)}


_NETWORKS = {
    "dlib": "dlib's face recognition network (King, 2017), which conditions no model",
    "mobilefacenet": "MobileFaceNet (Chen et al., 2018), which conditions the shipped model",
    ARCFACE: "ArcFace (Deng et al., 2019), the pack of insightface that the user has",
}


def _measures():
    for name in _ALL:
        shown = f"{name}, conditioned on" if name == _CONDITIONED_ON else name
        place, source = f"identity.{name}.", _NETWORKS[name]
        yield Measure(
            f"identity-{name}",
            f"identity: similarity to the reference ({shown})",
            place + "similarity",
            "up",
            "Mean cosine of the recognition vectors of picture and reference photo, after the mean "
            "of all reference photos is subtracted; 1 for the same photo.",
            source,
            score=functools.partial(similarity, recognizer=name),
        )
        yield Measure(
            f"identity-auc-{name}",
            f"identity AUC ({shown})",
            place + "auc",
            "up",
            "Area under the ROC curve: how often a picture is nearer to its own reference photo "
            "than a picture to another person's. Pictures without a face lose.",
            source,
        )
        yield Measure(
            f"identity-auc-cosine-{name}",
            f"identity AUC by centered cosine ({shown})",
            place + "auc_centered_cosine",
            "up",
            "The same, by centered cosine in place of Euclidean distance.",
            source,
        )
        for among, key in ((None, "all"), (RANKED_AMONG, str(RANKED_AMONG))):
            yield Measure(
                f"identity-first-of-{key}-{name}",
                f"rank-1 among {key} ({shown})",
                f"{place}rank1_among_{key}",
                "up",
                "How often the own reference photo is the nearest among "
                + (f"itself and {among - 1} others" if among else "those of all people")
                + ". A picture without a face is a miss.",
                source,
                "share",
                functools.partial(rank_one, recognizer=name, among=among),
            )


METRIC = Metric(
    compute,
    measures=tuple(_measures()),
    order=20,
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
