"""The pictures of an evaluation: made by the jobs engine on all devices and by any number of
processes, each made and measured exactly once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.evaluation import prompt_suite, stored
from caphuman_jax.evaluation.ablations import Variant
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io.images import read_photo
from caphuman_jax.jobs import jobs
from caphuman_jax.jobs.order import LARGEST_UNIT, Picture, Plan
from caphuman_jax.jobs.outputs import Files
from caphuman_jax.jobs.run_folder import RunFolder
from caphuman_jax.jobs.runner import Runner
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.person import identity_file
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.runtime.fixed_batches import batches

PICTURES, MEASURED = "pictures", ".measured"
_MEASURED_AT_A_TIME = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What became of the requests.

    Attributes:
        outcomes: of the pictures, in the order of the requests.
        failed: number of pictures that could not be made.
        done: whether nothing is left to make.
        seconds: "make_and_measure_a_picture" of those that this process made, and of that
            "measure_a_picture".
    """

    outcomes: list[Outcome]
    failed: int
    done: bool
    seconds: dict[str, float]


class MeasuredFiles(Files):
    """PNG files that are measured when all pictures of a unit are there, before the unit counts as
    done: FOLDER/.measured/UNIT.npz.
    """

    def __init__(self, folder: Path, pipe: Pipeline, label: str | None):
        super().__init__(folder, "png")
        self.pipe, self.seconds, self.count, self.label = pipe, 0.0, 0, label
        # Programs that run at the same time on a CPU share its threads. Two fits of several heads
        # then wait for each other for ever, since each holds the threads that the other needs.
        on_cpu = jax.default_backend() == "cpu"
        self.alone = threading.Lock() if on_cpu else contextlib.nullcontext()
        (folder / MEASURED).mkdir(parents=True, exist_ok=True)

    def store(
        self, picture: Picture, pixels: np.ndarray, settings: dict
    ) -> tuple[dict, bytes | None]:
        """See `Files.store`."""
        said = {} if self.label is None else {"ablation": self.label}
        return super().store(picture, pixels, settings | said)

    def finish(
        self, unit: int, units: int, lines: Sequence[dict], payloads: Sequence
    ) -> list[dict]:
        """See `Files.finish`."""
        if lines:
            with self.alone:
                start, measured = time.perf_counter(), []
                for part, filled in batches([line["file"] for line in lines], _MEASURED_AT_A_TIME):
                    read: dict[str, np.ndarray] = {n: read_photo(self.folder / n) for n in part}
                    images = [read[name] for name in filled]
                    model, head_of = self.pipe.head_model, self.pipe.head_of
                    measured += measure_images(model, images, head_of, len(part))
                self.seconds += time.perf_counter() - start
                self.count += len(lines)
            stored.save(_of_unit(self.folder, unit), [line["id"] for line in lines], measured)
        return super().finish(unit, units, lines, payloads)


def make_and_measure(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    requests: Sequence[Request],
    folder: Path,
    *,
    seed: int,
    batch: int,
    sampling: Mapping[str, Any] | None = None,
    variant: Variant | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Made:
    """Make and measure the pictures that are missing in `folder`, and read what was measured.

    Several processes may do this at the same time, on machines that share the folder; each waits
    until all pictures are done. A call with the same arguments resumes what was stopped.

    Args:
        pipe: makes the pictures.
        subjects: the people.
        requests: what is asked for.
        folder: of the report.
        seed: of random heads.
        batch: pictures at a time on all devices together.
        sampling: fields of `SamplingParams`, for all requests.
        variant: what is changed or left out.
        stopped: whether to stop after what has been started.

    Raises:
        SettingError: the folder holds pictures of another evaluation.
        CapHumanError: all pictures failed.
    """
    persons = folder / "people"
    persons.mkdir(parents=True, exist_ok=True)
    for i, subject in enumerate(subjects):
        path = persons / f"{i:05d}{identity_file.ENDING}"
        if not path.exists():
            person = variant.change(subject.person) if variant else subject.person
            identity_file.save(path, person, pipe.head_name)
    sampling = {**(sampling or {}), **(variant.sampling if variant else {})}
    entries = _entries(pipe.head_model, subjects, requests, persons, seed, sampling)
    asked = jobs.collect(entries, Checker(pipe.config), {}, "the suite")
    if asked.problems:
        raise SettingError(asked.problems[0])
    plan = Plan(asked.jobs, _unit_size(len(asked.jobs)))
    label = variant.label if variant else None
    who = "".join(subject.person.sha256 for subject in subjects)
    facts = {
        "requests": asked.fingerprint,
        "people": hashlib.sha256(who.encode()).hexdigest(),
        "weights": pipe.record["weights"],
        "precision": pipe.record["dtype"],
        "ablation": label,
        "units": plan.size,
    }
    run = RunFolder(folder / PICTURES, facts, plan.total, plan.units, "--report")
    try:
        place, start = MeasuredFiles(folder / PICTURES, pipe, label), time.perf_counter()
        run.reopen_changed(lambda line: place.sound(line, False))
        before, failed_before = run.counts()
        with tqdm(
            total=plan.total, initial=before + failed_before, desc="pictures", unit="picture"
        ) as bar:

            def report(made: int, failed: int, there: int) -> None:
                bar.update(made + failed + there)

            quiet = lambda stage, done, total: None
            Runner(
                pipe,
                plan,
                run,
                place,
                batch,
                report,
                quiet,
                stopped=stopped,
                blank_hints=variant is not None and not variant.hints,
                alone=place.alone,
            ).run()
        seconds, count = time.perf_counter() - start, place.count
        numbers = {job.id: job.number for job in asked.jobs}
        made, failed = run.write_index(numbers.__getitem__)
        done = made + failed == plan.total
        if done:
            run.tidy()
        measured = _measurements(folder / PICTURES, run.done_units())
    finally:
        run.close()
    if done and not measured:
        raise CapHumanError(
            f"none of the {plan.total} pictures could be made; {folder / PICTURES / 'failed.jsonl'}"
            " says why"
        )
    if len(measured) != made:
        raise DataError(
            f"measurements are missing in {folder / PICTURES / MEASURED}; evaluate again with "
            f"--overwrite"
        )
    per_picture = lambda total: total / count if count else math.nan
    return Made(
        _outcomes(pipe.head_model, subjects, requests, measured, seed),
        failed,
        done,
        {
            "make_and_measure_a_picture": per_picture(seconds),
            "measure_a_picture": per_picture(place.seconds),
        },
    )


def picture_id(request: Request) -> str:
    """The id of a request in jobs, files and scores."""
    return f"{request.number:06d}"


def _entries(
    model: HeadModel,
    subjects: Sequence[Subject],
    requests: Sequence[Request],
    persons: Path,
    seed: int,
    sampling: Mapping[str, Any],
) -> Iterator[jobs.Entry]:
    for request in requests:
        head = prompt_suite.head_numbers(model, subjects[request.person].head, request, seed)
        fields = {
            "reference": f"{request.person:05d}{identity_file.ENDING}",
            "prompt": request.prompt,
            "seed": request.seed,
            **({"head": head} if head else {}),
            **sampling,
        }
        yield jobs.Entry(picture_id(request), request.head, persons, fields)


def _unit_size(total: int) -> int:
    """As large as one measurement at least, and small enough for 64 machines."""
    return max(_MEASURED_AT_A_TIME, min(LARGEST_UNIT, total // 64))


def _of_unit(folder: Path, unit: int) -> Path:
    return folder / MEASURED / f"{unit:06d}.npz"


def _measurements(folder: Path, units: Sequence[int]) -> dict[str, ImageMeasurement]:
    found: dict[str, ImageMeasurement] = {}
    for unit in units:
        if (path := _of_unit(folder, unit)).exists():  # not where all its pictures failed
            found |= stored.load(path)
    return found


def _outcomes(
    model: HeadModel,
    subjects: Sequence[Subject],
    requests: Sequence[Request],
    measured: Mapping[str, ImageMeasurement],
    seed: int,
) -> list[Outcome]:
    own = [HeadParams.of(model, subject.head) for subject in subjects]
    asked: dict[tuple, HeadParams] = {}
    outcomes = []
    for request in requests:
        if (seen := measured.get(picture_id(request))) is None:
            continue
        key = (request.person, request.head, request.number if request.head == "random" else 0)
        if key not in asked:
            head = prompt_suite.requested_head(model, subjects[request.person].head, request, seed)
            asked[key] = HeadParams.of(model, head)
        file = f"{PICTURES}/{picture_id(request)}_00.png"
        person = request.person
        outcomes.append(Outcome(request, person, asked[key], own[person], seen, file))
    return outcomes
