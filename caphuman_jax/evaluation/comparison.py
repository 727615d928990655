"""Compares runs of `caphuman evaluate` on the same people, prompts and heads: paired differences of
every measure, and a verdict in words.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.evaluation import paired
from caphuman_jax.evaluation.numbers_in_words import (
    listed,
    show,
    show_range,
    unit_of_difference,
)
from caphuman_jax.evaluation.scored_run import MeasureSummary, Scored, ScoredRun, distinct_scores

LEVEL = 0.05
_SAME_HEAD = 0.5  # degrees: heads are fitted again in each run, on whatever device it has
_NAMED = 6  # measures without a difference in the verdict
_ANGLES = ("yaw", "pitch", "roll")


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a run differs from the first one in a measure.

    Attributes:
        measure: of the first run.
        run: index of the other run.
        people, pictures: that both runs have a value of.
        unpaired: pictures with a value in the first run only, and in the other only.
        before, after: means over people of the mean over each person's pictures.
        difference: after - before.
        interval: 95 % of the difference, by the bootstrap over people.
        p: of the sign-flip test over people.
        adjusted: p by Holm over all tests of the comparison.
    """

    measure: MeasureSummary
    run: int
    people: int
    pictures: int
    unpaired: tuple[int, int]
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    p: float
    adjusted: float = math.nan

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at LEVEL, with all tests of the comparison counted."""
        return self.adjusted <= LEVEL

    @property
    def outcome(self) -> str:
        """better, worse, higher, lower (where neither is better), or no difference shown."""
        if not self.shown:
            return "no difference shown"
        if not self.measure.sign:
            return "higher" if self.difference > 0 else "lower"
        return "better" if self.difference * self.measure.sign > 0 else "worse"


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Runs with their pictures in the first one's order, and how they differ from it.

    Attributes:
        runs: the runs.
        differences: by run and measure.
        left_out: {measure's title: why it is not compared}.
        settings: {setting: its value in each run} of those that differ.
        same_seeds: whether every pair was made from the same seed.
    """

    runs: tuple[ScoredRun, ...]
    differences: tuple[Difference, ...]
    left_out: dict[str, str]
    settings: dict[str, list[Any]]
    same_seeds: bool


def compare(
    runs: Sequence[ScoredRun], measures: Sequence[str] | None = None, seed: int = 0
) -> Comparison:
    """Compare runs with the first one.

    Args:
        runs: at least two.
        measures: names of those to test; None: all that the runs share.
        seed: of resampled people and signs.

    Raises:
        DataError: the runs are not of the same people, prompts and heads, or share no measure.
    """
    first = runs[0]
    aligned = (first, *(_aligned(first, run) for run in runs[1:]))
    shared, left_out = _shared(aligned, measures)
    numbers = {name: i for i, name in enumerate(first.people)}
    person = np.array([numbers[one.person] for one in first.pictures])
    found = [
        _difference(aligned, i, measure, person, seed)
        for i in range(1, len(aligned))
        for measure in shared
    ]
    tested = [one for one in found if one.people]
    adjusted = paired.holm([one.p for one in tested])
    return Comparison(
        aligned,
        tuple(dataclasses.replace(one, adjusted=float(p)) for one, p in zip(tested, adjusted)),
        left_out,
        other_settings(aligned),
        all(
            one.seed == other.seed
            for run in aligned[1:]
            for one, other in zip(first.pictures, run.pictures)
        ),
    )


def verdict(comparison: Comparison) -> list[str]:
    """The comparison in sentences, for each run but the first: where it is better, where it is
    worse, and where no difference is shown.
    """
    return [
        _sentence(comparison, i, [one for one in comparison.differences if one.run == i])
        for i in range(1, len(comparison.runs))
    ]


def headline(comparison: Comparison, i: int) -> str:
    """How many measures run `i` is better and worse at than the first run."""
    outcomes = Counter(one.outcome for one in comparison.differences if one.run == i)
    none = outcomes.pop("no difference shown", 0)
    total = none + outcomes.total()
    said = [
        f"{word} {'at' if word in ('better', 'worse') else 'in'} {count}"
        for word in ("better", "worse", "higher", "lower")
        if (count := outcomes[word])
    ]
    name, first = comparison.runs[i].name, comparison.runs[0].name
    if not said:
        return f"{name}, compared with {first}: no difference is shown in any of {total} measures."
    text = f"{name}, compared with {first}: {listed(said)} of {total} measures"
    return f"{text}; no difference is shown in the other {none}." if none else f"{text}."


def cautions(comparison: Comparison) -> list[str]:
    """What a reader should know before believing the verdict."""
    notes = []
    tests = len(comparison.differences)
    few = [one for one in comparison.differences if paired.least_p(one.people) * tests > LEVEL]
    if few:
        fewest, most = (how(one.people for one in few) for how in (min, max))
        notes.append(
            f"{len(few)} of the {tests} tests have too few people ({fewest} to {most}) to show any "
            f"difference: a p-value of {LEVEL / tests:.2g} is needed, and {most} people give "
            f"{paired.least_p(most):.2g} at the least. Evaluate more people, or name the measures "
            f"that matter with --measures."
        )
    if not comparison.same_seeds:
        notes.append(
            "The runs were made from other seeds, so their pictures differ by chance, too."
        )
    first = comparison.runs[0].name
    for i, run in enumerate(comparison.runs[1:], 1):
        mine = [one for one in comparison.differences if one.run == i]
        before, after = (max((one.unpaired[k] for one in mine), default=0) for k in (0, 1))
        if before or after:
            notes.append(
                f"Pictures with a value in one run only, most often because the other shows no "
                f"face, are left out: up to {before} of {first} and {after} of {run.name}. Compare "
                f"first how often a face was found."
            )
    return notes


def record(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON types."""
    return {
        "format": "caphuman_jax comparison",
        "format_version": 1,
        "runs": [{"name": run.name, "folder": str(run.folder)} for run in comparison.runs],
        "people": len(comparison.runs[0].people),
        "pictures": len(comparison.runs[0].pictures),
        "same_seeds": comparison.same_seeds,
        "settings_that_differ": comparison.settings,
        "verdict": verdict(comparison),
        "cautions": cautions(comparison),
        "tests": len(comparison.differences),
        "level": LEVEL,
        "differences": [difference_record(comparison, one) for one in comparison.differences],
        "not_compared": comparison.left_out,
    }


def difference_record(comparison: Comparison, one: Difference) -> dict[str, Any]:
    """A difference as a flat row of JSON types."""
    return {
        "run": comparison.runs[one.run].name,
        "measure": one.measure.name,
        "title": one.measure.title,
        "unit": one.measure.unit,
        "direction": one.measure.direction,
        "first": one.before,
        "other": one.after,
        "difference": one.difference,
        "low": one.interval[0],
        "high": one.interval[1],
        "p": one.p,
        "p_holm": one.adjusted,
        "outcome": one.outcome,
        "people": one.people,
        "pictures": one.pictures,
        "unpaired_first": one.unpaired[0],
        "unpaired_other": one.unpaired[1],
    }


def _aligned(first: ScoredRun, other: ScoredRun) -> ScoredRun:
    """The other run with its pictures in the first one's order."""
    for what, of in (
        ("people", lambda one: one.person),
        ("prompts", lambda one: one.prompt),
        ("heads", lambda one: one.head),
    ):
        mine, theirs = ({of(one) for one in run.pictures} for run in (first, other))
        if mine != theirs:
            raise DataError(
                f"{first.name} and {other.name} cannot be compared, since their {what} differ: "
                f"{_only(first, mine - theirs, other, theirs - mine)}; evaluate both models on the "
                f"same {what}"
            )
    request = lambda one: (one.person, one.prompt, one.head)
    counted = [Counter(map(request, run.pictures)) for run in (first, other)]
    for key in [*counted[0], *counted[1]]:
        if counted[0][key] != counted[1][key]:
            raise DataError(
                f"{first.name} and {other.name} cannot be compared, since they do not have the "
                f"same pictures: {counted[0][key]} and {counted[1][key]} of {key[0]} with "
                f"{key[1]!r} and head {key[2]!r}; evaluate both with the same --per-person and "
                f"--seed, to the end"
            )
    waiting: dict[tuple, list[Scored]] = defaultdict(list)
    for one in other.pictures:
        waiting[request(one)].append(one)
    ordered = [waiting[request(one)].pop(0) for one in first.pictures]
    for mine, theirs in zip(first.pictures, ordered):
        for angle in _ANGLES:
            a, b = (one.asked.get(angle, math.nan) for one in (mine, theirs))
            if abs(a - b) > _SAME_HEAD:
                raise DataError(
                    f"{first.name} and {other.name} cannot be compared, since their heads differ: "
                    f"{angle} {a:.1f} and {b:.1f} degrees are asked for in {mine.file} and "
                    f"{theirs.file}; evaluate both with the same photos and --seed"
                )
    return dataclasses.replace(other, pictures=ordered)


def _only(first: ScoredRun, mine: set[str], other: ScoredRun, theirs: set[str]) -> str:
    parts = []
    for run, names in ((first, mine), (other, theirs)):
        if names:
            some = ", ".join(repr(name) for name in sorted(names)[:2])
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            parts.append(f"{some}{more} only in {run.name}")
    return "; ".join(parts)


def _shared(
    runs: Sequence[ScoredRun], names: Sequence[str] | None
) -> tuple[list[MeasureSummary], dict[str, str]]:
    """Measures that mean the same in all runs, each kind of score once, and why others are left
    out.
    """
    known = [{one.name: one for one in run.measures} for run in runs]
    if names is not None:
        unknown = [name for name in names if name not in known[0]]
        if unknown:
            raise DataError(
                f"{runs[0].name} has no measure {unknown[0]!r}; its measures are "
                f"{', '.join(known[0])}"
            )
    shared: list[str] = []
    left_out: dict[str, str] = {}
    for measure in runs[0].measures:
        if names is not None and measure.name not in names:
            continue
        lacking = [run.name for run, its in zip(runs, known) if measure.name not in its]
        others = [its[measure.name] for its in known if measure.name in its]
        meaning = lambda one: (one.unit, one.direction, one.definition)
        if lacking:
            left_out[measure.title] = f"{', '.join(lacking)} does not have it"
        elif any(meaning(one) != meaning(measure) for one in others):
            left_out[measure.title] = "it is defined differently in the runs"
        else:
            shared.append(measure.name)
    for run, its in zip(runs[1:], known[1:]):
        for name, measure in its.items():
            if name not in known[0] and names is None:
                left_out[measure.title] = f"only {run.name} has it"
    if not shared:
        raise DataError(f"{' and '.join(run.name for run in runs)} share no measure")
    distinct, index = distinct_scores(runs)
    for measure in runs[0].measures:
        if measure.name in shared and measure.name not in index:
            left_out[measure.title] = "it has no scores of single pictures"
    chosen = dict.fromkeys(index[name] for name in shared if name in index)
    return [distinct[i] for i in chosen], left_out


def _difference(
    runs: Sequence[ScoredRun], i: int, measure: MeasureSummary, person: np.ndarray, seed: int
) -> Difference:
    before, after = runs[0].values(measure.name), runs[i].values(measure.name)
    both = np.isfinite(before) & np.isfinite(after)
    means = lambda values: paired.person_means(np.where(both, values, np.nan), person)
    changes = means(after - before)
    mean = lambda values: float(values.mean()) if len(values) else math.nan
    return Difference(
        measure,
        i,
        len(changes),
        int(both.sum()),
        (
            int(np.isnan(after[~np.isnan(before)]).sum()),
            int(np.isnan(before[~np.isnan(after)]).sum()),
        ),
        mean(means(before)),
        mean(means(after)),
        mean(changes),
        paired.bootstrap_interval(changes, seed),
        paired.sign_flip_p(changes, seed),
    )


def _sentence(comparison: Comparison, i: int, mine: Iterable[Difference]) -> str:
    name, first = comparison.runs[i].name, comparison.runs[0].name
    said: dict[str, list[str]] = defaultdict(list)
    for one in mine:
        title, unit = _within(one.measure.title), unit_of_difference(one.measure.unit)
        if one.shown:
            low, high = sorted(math.copysign(1, one.difference) * v for v in one.interval)
            title += (
                f" by {show(abs(one.difference), unit)} (95 % {show_range(low, high, unit)}, "
                f"{one.people} people)"
            )
        said[one.outcome].append(title)
    none = said.pop("no difference shown", [])
    if len(none) > _NAMED:
        none = [*none[: _NAMED - 1], f"{len(none) - _NAMED + 1} other measures"]
    parts = [
        f"{word} {'at' if word in ('better', 'worse') else 'in'} {listed(titles)}"
        for word in ("better", "worse", "higher", "lower")
        if (titles := said[word])
    ]
    if not parts:
        return f"No difference between {name} and {first} is shown in {listed(none)}."
    text = f"{name}, compared with {first}: {', and '.join(parts)}"
    return f"{text}; no difference is shown in {listed(none)}." if none else f"{text}."


def _within(title: str) -> str:
    """A title within a sentence: "Yaw error" becomes "yaw error", and "CLIP score" stays."""
    return title[0].lower() + title[1:] if title[1:2].islower() else title


def other_settings(runs: Sequence[ScoredRun]) -> dict[str, list[Any]]:
    """{setting: its value in each run} of those that differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}
