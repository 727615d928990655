"""Outcomes → every number of the report, as nested dicts of JSON types."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from caphuman_jax.evaluation import design, metrics
from caphuman_jax.evaluation.benchmark import Outcome, Subject
from caphuman_jax.evaluation.measure import GREY_CHROMA, RECOGNIZERS
from caphuman_jax.head.base import HeadModel

# mobilefacenet cosine above which two reference photos show one person; they are not "other people"
SAME_PERSON = 0.5
RANKED_AMONG = 50
CHANGED = {
    "angles": 1.0,
    "position": 0.005,
    "expression": 0.02,
    "light": 0.02,
}  # least difference from the own head that counts as one
WITHIN = (
    20.0  # degrees: heads turned further than this, either way, are left out of the pose errors
)
ANGLES = ("yaw", "pitch", "roll")

GOALS = {
    "face found": ("face_found.value", ">=", 0.97),
    "identity AUC (dlib)": ("identity.dlib.auc.value", ">=", 0.90),
    "rank-1 among 50 people (dlib)": ("identity.dlib.rank1_among_50.value", ">=", 0.40),
    "median yaw error, degrees": ("pose.yaw.changed.median.value", "<=", 4.0),
    "median pitch error, degrees": ("pose.pitch.changed.median.value", "<=", 4.0),
    "median roll error, degrees": ("pose.roll.changed.median.value", "<=", 2.0),
    "smile correlation": ("expression.smile.changed.correlation.value", ">=", 0.6),
    "jawOpen correlation": ("expression.jawOpen.changed.correlation.value", ">=", 0.6),
}
"""What the small model is meant to reach on held-out people: name to (place in the report,
relation, value).

Pose and expression count where the request changes them: elsewhere a copy of the photo would do.
"""


def compute(
    model: HeadModel, subjects: Sequence[Subject], outcomes: Sequence[Outcome], seed: int = 0
) -> dict:
    """All statistics of requests' outcomes, or of the floor's, which have no prompts. {} without
    outcomes.
    """
    if not outcomes:
        return {}
    person = np.array([o.person for o in outcomes])
    found = np.array([float(o.seen.faces > 0) for o in outcomes])
    result = {
        "pictures": len(outcomes),
        "people": len(np.unique(person)),
        "face_found": {
            "value": float(found.mean()),
            "interval": metrics.interval(np.mean, [found], person, seed),
        },
        "more_than_one_face": float(np.mean([o.seen.faces > 1 for o in outcomes])),
        "identity": {name: identity(name, subjects, outcomes, seed) for name in RECOGNIZERS},
        "pose": pose(outcomes, person, seed),
        "expression": expression(model, outcomes, person, seed),
        "light": {
            axis: controlled("light", *_columns(outcomes, "light", i), person, seed)
            for i, axis in enumerate(("right", "above"))
        },
        "position": position(outcomes, person, seed),
    }
    if outcomes[0].request is not None:
        result["prompts"] = prompts(outcomes, person, seed)
        result["by_head"] = by_head(model, subjects, outcomes)
    return result


def goals(report: dict) -> dict[str, dict]:
    """Each of GOALS with what was measured and whether that reaches it; None where nothing could be
    measured.
    """
    result = {}
    for name, (place, relation, wanted) in GOALS.items():
        value = functools.reduce(lambda part, key: part[key], place.split("."), report)
        reached = value >= wanted if relation == ">=" else value <= wanted
        result[name] = {
            "value": value,
            "goal": f"{relation} {wanted:g}",
            "reached": bool(reached) if np.isfinite(value) else None,
        }
    return result


def identity(
    recognizer: str, subjects: Sequence[Subject], outcomes: Sequence[Outcome], seed: int
) -> dict:
    """How surely a result is told to show its own reference person rather than another of the run.

    By Euclidean distance, and by cosine after the mean of the reference vectors is taken off both
    sides: raw cosines of dlib's vectors all lie near 1. AUC by chance is 0.5, rank-1 is 1 in the
    number of people."""
    person = np.array([o.person for o in outcomes])
    references = np.stack([s.vectors[recognizer] for s in subjects]).astype(np.float64)
    results = np.stack([o.seen.vectors[recognizer] for o in outcomes]).astype(np.float64)
    comparable = different_people(subjects)[person]
    distance = np.linalg.norm(results[:, None] - references[None], axis=-1)
    center = references.mean(axis=0) if len(references) > 1 else 0.0
    cosine = _unit(results - center) @ _unit(references - center).T
    others = comparable & np.isfinite(distance)
    others[np.arange(len(person)), person] = False
    own = np.take_along_axis(cosine, person[:, None], axis=1)[:, 0]
    answer = {
        "conditioned_on": recognizer == "mobilefacenet",
        "auc": _auc(distance, person, comparable, seed),
        "auc_centered_cosine": _auc(-cosine, person, comparable, seed),
        "own_distance": _spread(distance[np.arange(len(person)), person]),
        "other_distance": _spread(distance[others]),
        "own_centered_cosine": _spread(own),
        "other_centered_cosine": _spread(cosine[others]),
        "pairs_left_out_as_same_person": int((~different_people(subjects)).sum() // 2),
    }
    nearer, count = metrics.closer_people(distance, person, comparable)
    for key, among in (("rank1_among_all", None), (f"rank1_among_{RANKED_AMONG}", RANKED_AMONG)):
        chances = metrics.rank_one(nearer, count, among)
        by_chance = (
            np.nan
            if among and not np.isfinite(chances).any()
            else 1 / among
            if among
            else float(np.mean(1 / (count + 1)))
        )
        answer[key] = {
            "value": _mean(chances),
            "interval": metrics.interval(_mean, [chances], person, seed),
            "chance": by_chance,
        }
    return answer


def different_people(subjects: Sequence[Subject]) -> np.ndarray:
    """(P, P) whether two reference photos show different people as far as mobilefacenet can tell;
    True on the diagonal.
    """
    vectors = _unit(np.stack([s.vectors["mobilefacenet"] for s in subjects]).astype(np.float64))
    return (vectors @ vectors.T <= SAME_PERSON) | np.eye(len(subjects), dtype=bool)


def pose(outcomes: Sequence[Outcome], person: np.ndarray, seed: int) -> dict:
    """Yaw, pitch and roll errors in degrees over results with a face, of heads asked for within
    WITHIN degrees on every axis.
    """
    kept = np.array([np.abs(o.asked.angles).max() <= WITHIN for o in outcomes])
    answer: dict = {"requests": int(kept.sum())}
    for i, name in enumerate(ANGLES):
        columns = (column[kept] for column in _columns(outcomes, "angles", i))
        answer[name] = controlled("angles", *columns, person[kept], seed)
    return answer


def controlled(
    kind: str,
    asked: np.ndarray,
    measured: np.ndarray,
    own: np.ndarray,
    person: np.ndarray,
    seed: int,
) -> dict:
    """Errors and correlation of one number of heads, over "all" requests and over those that ask
    for it "changed" (see CHANGED).
    """
    statistics = {
        "median": metrics.median_error,
        "mean": metrics.mean_error,
        "ninetieth": metrics.ninetieth_error,
        "bias": metrics.bias,
        "correlation": metrics.correlation,
    }
    return _all_and_changed(
        statistics, asked, measured, own, np.abs(asked - own) > CHANGED[kind], person, seed
    )


def expression(
    model: HeadModel, outcomes: Sequence[Outcome], person: np.ndarray, seed: int
) -> dict:
    """smile (mean of its two sides), jawOpen, and all weights taken together."""
    names = list(model.expression_names)
    asked, measured, own = _tables(outcomes, "expression")
    smile = [names.index("mouthSmileLeft"), names.index("mouthSmileRight")]
    jaw = names.index("jawOpen")
    together = {"mean": metrics.mean_error, "correlation": metrics.correlation}
    return {
        "smile": controlled(
            "expression",
            *(table[:, smile].mean(axis=1) for table in (asked, measured, own)),
            person,
            seed,
        ),
        "jawOpen": controlled(
            "expression", *(table[:, jaw] for table in (asked, measured, own)), person, seed
        ),
        "together": _all_and_changed(
            together, asked, measured, own, _differs("expression", asked, own), person, seed
        ),
    }


def position(outcomes: Sequence[Outcome], person: np.ndarray, seed: int) -> dict:
    """Where the head's middle is, as a part of the picture's side, and its size relative to the
    size asked for.
    """
    asked, measured, own = _tables(outcomes, "position")
    off = lambda a, m: metrics.median_error(
        np.zeros(len(a)), np.linalg.norm(m[:, :2] - a[:, :2], axis=1)
    )
    size = lambda a, m: metrics.median_error(np.zeros(len(a)), np.log(m[:, 2] / a[:, 2]))
    statistics = {"median_distance": off, "median_log_size_error": size}
    return _all_and_changed(
        statistics, asked, measured, own, _differs("position", asked, own), person, seed
    )


def prompts(outcomes: Sequence[Outcome], person: np.ndarray, seed: int) -> dict:
    """Whether what the prompt asks for can be measured in the result; shuffled prompts give the
    chance level.

    black_and_white: how often a result is black-and-white (chroma below GREY_CHROMA) exactly when
    that is asked for;
    background: of results whose prompt names a background color and that show a face, how often it
    is measured to be so ("dark blue" counts as blue)."""
    answer: dict = {}
    grey_asked = np.array([float(design.asks_without_color(o.request.prompt)) for o in outcomes])
    chroma = np.array([o.seen.chroma for o in outcomes])
    if 0 < grey_asked.mean() < 1:
        right = lambda a, m: float(np.mean(a == (m < GREY_CHROMA)))
        answer["black_and_white"] = metrics.summary(right, grey_asked, chroma, person, seed) | {
            "share_when_asked": float(np.mean(chroma[grey_asked > 0] < GREY_CHROMA)),
            "share_otherwise": float(np.mean(chroma[grey_asked == 0] < GREY_CHROMA)),
            "auc_of_chroma": metrics.auc(chroma[grey_asked == 0], chroma[grey_asked > 0]),
        }
    asked = np.array([design.asked_background(o.request.prompt) or "" for o in outcomes])
    shown = np.array([(o.seen.background or "").split(" ")[-1] for o in outcomes])
    kept = (asked != "") & np.array([o.seen.faces > 0 for o in outcomes])
    if kept.any():
        same = lambda a, m: float(np.mean(a == m))
        answer["background"] = metrics.summary(
            same, asked[kept], shown[kept], person[kept], seed
        ) | {
            "by_color": {
                c: same(asked[kept & (asked == c)], shown[kept & (asked == c)])
                for c in sorted(set(asked[kept]))
            },
            "measured": {
                c: {
                    w: int(n)
                    for w, n in zip(*np.unique(shown[kept & (asked == c)], return_counts=True))
                }
                for c in sorted(set(asked[kept]))
            },
        }
    return answer


def by_head(model: HeadModel, subjects: Sequence[Subject], outcomes: Sequence[Outcome]) -> dict:
    """A short line for each head that was asked for: face found, AUC, median errors, mean smile and
    jawOpen measured.
    """
    names = list(model.expression_names)
    references = np.stack([s.vectors["dlib"] for s in subjects])
    answer = {}
    for head in dict.fromkeys(o.request.head for o in outcomes):
        part = [o for o in outcomes if o.request.head == head]
        person = np.array([o.person for o in part])
        weights = np.stack([o.seen.numbers.expression for o in part])
        distance = np.linalg.norm(
            np.stack([o.seen.vectors["dlib"] for o in part])[:, None] - references, axis=-1
        )
        wins, possible = metrics.people_auc(distance, person, different_people(subjects)[person])
        answer[head] = {
            "pictures": len(part),
            "face_found": float(np.mean([o.seen.faces > 0 for o in part])),
            "auc": _share(wins, possible),
            **{
                f"{name}_median": metrics.median_error(*_columns(part, "angles", i)[:2])
                for i, name in enumerate(ANGLES)
            },
            **{
                f"{name}_measured": _mean(np.array([o.seen.numbers.angles[i] for o in part]))
                for i, name in enumerate(ANGLES)
            },
            "smile_measured": _mean(
                weights[:, [names.index("mouthSmileLeft"), names.index("mouthSmileRight")]]
            ),
            "jawOpen_measured": _mean(weights[:, names.index("jawOpen")]),
            "light_right_measured": _mean(np.array([o.seen.numbers.light[0] for o in part])),
        }
    return answer


def _all_and_changed(statistics, asked, measured, own, changed, person, seed):
    answer: dict = {}
    for name, kept in (("all", np.ones(len(changed), bool)), ("changed", changed)):
        a, m, o = asked[kept], measured[kept], own[kept]
        answer[name] = {"requests": int(kept.sum())} | {
            key: metrics.summary(statistic, a, m, person[kept], seed, own=o)
            for key, statistic in statistics.items()
        }
    return answer


def _differs(kind, asked, own):
    return np.abs(asked - own).max(axis=1) > CHANGED[kind]


def _tables(outcomes, field):
    """(N, K) of one field: asked, measured and of the own head."""
    heads = (
        [o.asked for o in outcomes],
        [o.seen.numbers for o in outcomes],
        [o.own for o in outcomes],
    )
    return tuple(np.stack([getattr(numbers, field) for numbers in column]) for column in heads)


def _columns(outcomes, field, i):
    return tuple(table[:, i] for table in _tables(outcomes, field))


def _auc(distance, person, comparable, seed):
    wins, possible = metrics.people_auc(distance, person, comparable)
    return {
        "value": _share(wins, possible),
        "interval": metrics.ratio_interval(wins, possible, seed),
        "chance": 0.5,
    }


def _share(part, whole):
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")


def _mean(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _spread(values):
    values = values[np.isfinite(values)]
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)) if len(values) else [float("nan")] * 3
    return {"tenth": float(low), "median": float(middle), "ninetieth": float(high)}


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
