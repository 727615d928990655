"""What a metric is, and what several of them use.

To add a metric, write a module in this package that defines `METRIC`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.outcome import ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.face import recognition, segmentation
from caphuman_jax.face.colors import measure_colors
from caphuman_jax.head.base import HeadModel

# Least difference from the subject's own head that counts as a change.
CHANGED = {"angles": 1.0, "position": 0.005, "expression": 0.02, "light": 0.02}
# Cosine of mobilefacenet's vectors above which two reference photos may show one person, so that
# neither counts as another person's. Lower than `prepare`'s limit, which must not join strangers.
POSSIBLY_SAME_PERSON = 0.5
FEWEST = 20
"""Requests, pictures or people below which a value is too uncertain to be compared with a goal or
with chance.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture as metrics read it; what several of them need is computed once.

    Attributes:
        image: (S, S, 3) uint8.
        landmarks: (478, 3) of the largest face in its pixels; None without a face.
        known: `recognized`, where it is known already.
    """

    image: np.ndarray
    landmarks: np.ndarray | None
    known: tuple[np.ndarray, np.ndarray] | None = None

    @functools.cached_property
    def recognized(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Vector (192,) and features (49, 512) of the shipped recognizer."""
        if self.landmarks is None:
            return None
        return self.known or recognition.identity(self.image, self.landmarks)

    @functools.cached_property
    def colors(self) -> np.ndarray | None:
        """(5, 4) of `face.colors.measure_colors`."""
        if self.landmarks is None:
            return None
        person = segmentation.person_mask(self.image)
        person = cv2.resize(person, (256, 256), interpolation=cv2.INTER_AREA)
        whole = np.array([0, 0, 1, 1], np.float32)
        return measure_colors(self.image, person, self.landmarks / len(self.image), whole)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What metrics are computed from.

    Attributes:
        model: head model.
        subjects: the people.
        outcomes: of requests, or of the measurement floor.
        seed: of what is random.
        training: (M, 192) unit vectors of the shipped recognizer of all photos that the model was
            trained on, where they are known.
        texts: {prompt: its unit vector by CLIP}, where there is a CLIP.
    """

    model: HeadModel
    subjects: Sequence[Subject]
    outcomes: Sequence[Outcome]
    seed: int = 0
    training: np.ndarray | None = None
    texts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def person(self) -> np.ndarray:
        """(N,) index of each outcome's subject."""
        return np.array([o.person for o in self.outcomes])

    @property
    def requests(self) -> list[Request]:
        """Of the outcomes; none of the measurement floor."""
        return [o.request for o in self.outcomes if o.request is not None]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of a run: a line of summary.json and of the report's table.

    Attributes:
        name: of its entry in scores.jsonl and summary.json, words joined by "-".
        title: in words.
        place: of {"value", "interval", "chance", "copied"} in the results, names joined by dots.
        direction: "up" or "down", where better values lie.
        definition: what is computed.
        source: of the definition: a paper, or the network that measures.
        unit: "degrees", "share" (0 to 1, shown as a percentage), or "" for a plain number.
        score: returns a number for each outcome (N,), NaN where none was measured; None for a
            number that only many pictures have together.
        counts: returns which outcomes (N,) the number is made of; None: those with a score, or
            with a face.
        needs: what the user gives for it to be measured; "": nothing.
    """

    name: str
    title: str
    place: str
    direction: Literal["up", "down"]
    definition: str
    source: str
    unit: Literal["", "degrees", "share"] = ""
    score: Callable[[Run], np.ndarray] | None = None
    counts: Callable[[Run], np.ndarray] | None = None
    needs: str = ""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What the small model is meant to reach on held-out people.

    Attributes:
        label: in words.
        place: of the value in the results, names joined by dots.
        relation: ">=" or "<=".
        value: the goal.
        counted: place of the number of requests, pictures or people that the value is made of.
        fewest: below this number the goal is neither reached nor missed.
    """

    label: str
    place: str
    relation: str
    value: float
    counted: str = "pictures"
    fewest: int = FEWEST


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, or several that are computed together.

    Attributes:
        compute: returns entries of the results, as nested dicts of JSON types.
        measures: the numbers among the results that the summary and the report show.
        goals: that the values are compared with.
        previews: {name: place in the results} of the values that training reports.
        requests_only: computed for requests, and not for the measurement floor.
        reads: {name: function(shown) -> number, text, array or None}; the values are in
            `ImageMeasurement.values`. An array always has the same shape, NaN without a face.
        order: place among the other metrics; equal ones are ordered by the names of their modules.
    """

    compute: Callable[[Run], dict[str, Any]]
    measures: tuple[Measure, ...] = ()
    goals: tuple[Goal, ...] = ()
    previews: Mapping[str, str] = dataclasses.field(default_factory=dict)
    requests_only: bool = False
    reads: Mapping[str, Callable[[Shown], Any]] = dataclasses.field(default_factory=dict)
    order: int = 50


def copier(run: Run) -> Run:
    """The same requests, answered by a model that returns the reference photo."""
    subjects = run.subjects
    copies = [
        ImageMeasurement(1, o.own, subjects[o.person].vectors, dict(subjects[o.person].values))
        for o in run.outcomes
    ]
    outcomes = [dataclasses.replace(o, measured=c) for o, c in zip(run.outcomes, copies)]
    return dataclasses.replace(run, outcomes=outcomes)


def own_values(run: Run, name: str) -> np.ndarray | None:
    """(N,) what a metric read in each outcome's reference picture, see `Metric.reads`; None where
    the pictures were not read.
    """
    values = [run.subjects[o.person].values for o in run.outcomes]
    return np.array([v[name] for v in values]) if all(name in v for v in values) else None


def shuffled(run: Run, rng: np.random.Generator) -> Run:
    """The same requests, with the results assigned to them at random."""
    order = rng.permutation(len(run.outcomes))
    outcomes = [
        dataclasses.replace(o, measured=run.outcomes[i].measured)
        for o, i in zip(run.outcomes, order)
    ]
    return dataclasses.replace(run, outcomes=outcomes)


def averaged(
    run: Run,
    score: Callable[[Run], np.ndarray],
    statistic: Callable[[np.ndarray], float] | None = None,
    every: int = 5,
) -> dict[str, Any]:
    """{"value", "interval", "chance", "copied"} of a score of single pictures.

    Args:
        run: the outcomes.
        score: as in `Measure`.
        statistic: of the scores (N,); None: the mean of the finite ones.
        every: the chance level is the mean of one in this number of `estimators.SHUFFLES`, for a
            score that takes long.
    """
    statistic = statistic or mean
    values, rng = score(run), np.random.default_rng(run.seed)
    few = int(np.isfinite(values).sum()) < FEWEST
    by_chance = (
        []
        if few
        else [
            statistic(score(shuffled(run, rng)))
            for _ in range(max(1, estimators.SHUFFLES // every))
        ]
    )
    return {
        "value": statistic(values),
        "interval": estimators.interval(statistic, [values], run.person, run.seed),
        "chance": mean(np.array(by_chance)),
        "copied": statistic(score(copier(run))),
    }


def median(values: np.ndarray) -> float:
    """Median of the finite values."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def tables(run: Run, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) of one field of HeadParams: requested, measured, and of the own head."""
    table = lambda heads: np.stack([getattr(head, field) for head in heads])
    return (
        table([o.asked for o in run.outcomes]),
        table([o.measured.head for o in run.outcomes]),
        table([o.own for o in run.outcomes]),
    )


def columns(run: Run, field: str, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) column i of each of `tables`."""
    asked, measured, own = tables(run, field)
    return asked[:, i], measured[:, i], own[:, i]


def differs(kind: str, asked: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(N,) whether any of K numbers is requested to change."""
    return np.abs(asked - own).max(axis=1) > CHANGED[kind]


def controlled(
    kind: str,
    asked: np.ndarray,
    measured: np.ndarray,
    own: np.ndarray,
    person: np.ndarray,
    seed: int,
) -> dict:
    """Errors and correlation of one number of heads, over "all" requests and over those that ask
    for it to be "changed" (see CHANGED).
    """
    statistics = {
        "median": estimators.median_error,
        "mean": estimators.mean_error,
        "ninetieth": estimators.ninetieth_error,
        "bias": estimators.bias,
        "correlation": estimators.correlation,
    }
    return all_and_changed(
        statistics, asked, measured, own, np.abs(asked - own) > CHANGED[kind], person, seed
    )


def all_and_changed(
    statistics: Mapping[str, Callable],
    asked: np.ndarray,
    measured: np.ndarray,
    own: np.ndarray,
    changed: np.ndarray,
    person: np.ndarray,
    seed: int,
) -> dict:
    """{"all", "changed": {"requests": number, name: summary}} of statistics(asked, measured)."""
    answer: dict = {}
    for name, kept in (("all", np.ones(len(changed), bool)), ("changed", changed)):
        a, m, o = asked[kept], measured[kept], own[kept]
        answer[name] = {"requests": int(kept.sum())} | {
            key: estimators.summary(statistic, a, m, person[kept], seed, own=o)
            | ({"chance": float("nan")} if kept.sum() < FEWEST else {})
            for key, statistic in statistics.items()
        }
    return answer


def different_people(subjects: Sequence[Subject]) -> np.ndarray:
    """(P, P) whether two reference photos show different people as far as mobilefacenet can say;
    True on the diagonal.
    """
    vectors = unit(np.stack([s.vectors["mobilefacenet"] for s in subjects]).astype(np.float64))
    return (vectors @ vectors.T <= POSSIBLY_SAME_PERSON) | np.eye(len(subjects), dtype=bool)


def mean(values: np.ndarray) -> float:
    """Mean of the finite values."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def share(part: np.ndarray, whole: np.ndarray) -> float:
    """part.sum() / whole.sum(), or NaN."""
    return float(part.sum() / whole.sum()) if whole.sum() else float("nan")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (…, D) of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
