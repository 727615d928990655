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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.evaluation import prompt_suite, stored
from caphuman_jax.evaluation.ablations import Variant
from caphuman_jax.evaluation.asked import Asked, Look, files_of, request_id, write_people
from caphuman_jax.evaluation.judges import Judges
from caphuman_jax.evaluation.judges import facts as facts_of
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io import metadata
from caphuman_jax.io.images import read_photo, write_png
from caphuman_jax.jobs import jobs
from caphuman_jax.jobs.order import LARGEST_UNIT, Picture, Plan
from caphuman_jax.jobs.outputs import Files
from caphuman_jax.jobs.run_folder import RunFolder
from caphuman_jax.jobs.runner import Runner
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import Request as JobRequest
from caphuman_jax.runtime.fixed_batches import batches
from caphuman_jax.runtime.progress import progress_bar

PICTURES, MEASURED, FACES = "pictures", ".measured", "faces"
_MEASURED_AT_A_TIME = 8
LookAt = Callable[[Pipeline, Conditioning, np.ndarray], list[Look]]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What became of the requests.

    Attributes:
        outcomes: of the faces that were asked for, in the order of the requests.
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

    def __init__(
        self,
        folder: Path,
        pipe: Pipeline,
        label: str | None,
        faces: Faces | None,
        judges: Judges,
    ):
        super().__init__(folder, "png")
        self.pipe, self.seconds, self.count, self.label = pipe, 0.0, 0, label
        self.faces, self.judges = faces, judges
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
                start = time.perf_counter()
                path = _of_unit(self.folder, unit)
                if self.faces is None:
                    files = [line["file"] for line in lines]
                    read = lambda name: read_photo(self.folder / name)
                    stored.save(path, [line["id"] for line in lines], self._measured(files, read))
                else:
                    self._measure_faces(path, lines, self.faces)
                self.seconds += time.perf_counter() - start
                self.count += len(lines)
        return super().finish(unit, units, lines, payloads)

    def _measure_faces(self, path: Path, lines: Sequence[dict], faces: Faces) -> None:
        """Measure every face of some pictures in a square of its own, which becomes a file."""
        looks: dict[str, Look] = {}
        for line in lines:
            picture = read_photo(self.folder / line["file"])
            for request, look in faces(line["id"], picture):
                file = self.folder.parent / face_file(request)
                write_png(file, look.square, metadata.metadata())
                looks[request_id(request)] = look
        measured = self._measured(list(looks), lambda name: looks[name].square)
        in_pictures = [look.in_picture(one) for look, one in zip(looks.values(), measured)]
        asked, frames = zip(*((look.asked, look.frame) for look in looks.values()))
        stored.save(path, list(looks), in_pictures, asked, frames)

    def _measured(
        self, names: Sequence[str], read: Callable[[str], np.ndarray]
    ) -> list[ImageMeasurement]:
        measured = []
        for part, filled in batches(names, _MEASURED_AT_A_TIME):
            images = {name: read(name) for name in part}
            model, head_of = self.pipe.head_model, self.pipe.head_of
            every = [images[name] for name in filled]
            found = measure_images(model, every, head_of, len(part))
            for judge, network in self.judges.items():
                for one, vector in zip(found, network.images(every[: len(part)])):
                    one.values[judge] = vector
            measured += found
        return measured


class Faces:
    """Finds the faces that were asked for in the pictures of a suite of another kind.

    Args:
        pipe: made the pictures.
        look: see `suites.kinds.Kind`.
        subjects: the people.
        asked: every picture.
        requests: of the jobs, by id.
    """

    def __init__(
        self,
        pipe: Pipeline,
        look: LookAt,
        subjects: Sequence[Subject],
        asked: Sequence[Asked],
        requests: Mapping[str, JobRequest],
    ):
        self._pipe, self._look, self._subjects = pipe, look, subjects
        self._asked, self._requests = {one.id: one for one in asked}, requests

    def __call__(self, id: str, picture: np.ndarray) -> list[tuple[Request, Look]]:
        """(request, where its face was asked for) of a finished picture. It is conditioned a second
        time, so that a picture that a killed process left is measured like any other.
        """
        rows, request = self._asked[id].requests, self._requests[id]
        shown = tuple(
            dataclasses.replace(subject, references=(self._subjects[row.person].person,))
            if subject.references
            else subject
            for subject, row in zip(request.subjects, rows)
        )
        request = dataclasses.replace(request, subjects=shown)
        made_from = self._pipe.condition(request, with_hints=False, warn=False)
        return list(zip(rows, self._look(self._pipe, made_from, picture)))


def make_and_measure(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    asked: Sequence[Asked],
    folder: Path,
    *,
    seed: int,
    batch: int,
    sampling: Mapping[str, Any] | None = None,
    variant: Variant | None = None,
    look: LookAt | None = None,
    photos: Sequence[Photo] = (),
    judges: Judges = MappingProxyType({}),
    stopped: Callable[[], bool] = lambda: False,
) -> Made:
    """Make and measure the pictures that are missing in `folder`, and read what was measured.

    Several processes may do this at the same time, on machines that share the folder; each waits
    until all pictures are done. A call with the same arguments resumes what was stopped.

    Args:
        pipe: makes the pictures.
        subjects: the people.
        asked: what is asked for.
        folder: of the report.
        seed: of random heads.
        batch: pictures at a time on all devices together.
        sampling: fields of `SamplingParams`, for all pictures that do not have their own.
        variant: what is changed or left out.
        look: finds the faces in a picture, see `suites.kinds.Kind`; None: the picture is measured
            as a whole.
        photos: of the subjects, if jobs edit them.
        judges: look at the pictures, too.
        stopped: whether to stop after what has been started.

    Raises:
        SettingError: the folder holds pictures of another evaluation.
        CapHumanError: all pictures failed.
    """
    persons = folder / "people"
    changed = [
        dataclasses.replace(subject, person=variant.change(subject.person)) if variant else subject
        for subject in subjects
    ]
    begun = RunFolder.exists(folder / PICTURES)  # with these people, as is checked below
    write_people(persons, changed, photos, pipe.head_name, keep=begun)
    sampling = {**(sampling or {}), **(variant.sampling if variant else {})}
    entries = (
        jobs.Entry(one.id, one.requests[0].head, persons, {**sampling, **one.fields})
        for one in asked
    )
    found = jobs.collect(entries, Checker(pipe.config), {}, "the suite")
    if found.problems:
        raise SettingError(found.problems[0])
    plan = Plan(found.jobs, _unit_size(len(found.jobs)))
    label = variant.label if variant else None
    who = "".join(subject.person.sha256 for subject in subjects)
    facts = {
        "requests": found.fingerprint,
        "people": hashlib.sha256(who.encode()).hexdigest(),
        "weights": pipe.record["weights"],
        "precision": pipe.record["dtype"],
        "ablation": label,
        "units": plan.size,
        **facts_of(judges),
    }
    faces = None
    if look is not None:
        faces = Faces(pipe, look, subjects, asked, {job.id: job.request for job in found.jobs})
        (folder / FACES).mkdir(exist_ok=True)
    run = RunFolder(folder / PICTURES, facts, plan.total, plan.units, "--report")
    try:
        place = MeasuredFiles(folder / PICTURES, pipe, label, faces, judges)
        start = time.perf_counter()
        run.reopen_changed(lambda line: place.sound(line, False))
        before, failed_before = run.counts()
        with progress_bar(
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
        numbers = {job.id: job.number for job in found.jobs}
        made, failed = run.write_index(numbers.__getitem__)
        done = made + failed == plan.total
        if done:
            run.tidy()
        measured, heads = _measurements(folder / PICTURES, run.done_units())
    finally:
        run.close()
    if done and not measured:
        raise CapHumanError(
            f"none of the {plan.total} pictures could be made; {folder / PICTURES / 'failed.jsonl'}"
            " says why"
        )
    there = [all(request_id(row) in measured for row in one.requests) for one in asked]
    if sum(there) != made:
        raise DataError(
            f"measurements are missing in {folder / PICTURES / MEASURED}; evaluate again with "
            f"--overwrite"
        )
    per_picture = lambda total: total / count if count else math.nan
    return Made(
        _outcomes(pipe.head_model, subjects, asked, measured, heads, seed),
        failed,
        done,
        {
            "make_and_measure_a_picture": per_picture(seconds),
            "measure_a_picture": per_picture(place.seconds),
        },
    )


def face_file(request: Request) -> str:
    """The square of a face that was measured, relative to the report."""
    return f"{FACES}/{request_id(request)}.png"


def _unit_size(total: int) -> int:
    """As large as one measurement at least, and small enough for 64 machines."""
    return max(_MEASURED_AT_A_TIME, min(LARGEST_UNIT, total // 64))


def _of_unit(folder: Path, unit: int) -> Path:
    return folder / MEASURED / f"{unit:06d}.npz"


def _measurements(
    folder: Path, units: Sequence[int]
) -> tuple[dict[str, ImageMeasurement], dict[str, tuple[HeadParams, stored.Frame]]]:
    measured: dict[str, ImageMeasurement] = {}
    asked: dict[str, tuple[HeadParams, stored.Frame]] = {}
    for unit in units:
        if (path := _of_unit(folder, unit)).exists():  # not where all its pictures failed
            measured |= stored.load(path)
            asked |= stored.load_asked(path)
    return measured, asked


def _outcomes(
    model: HeadModel,
    subjects: Sequence[Subject],
    asked: Sequence[Asked],
    measured: Mapping[str, ImageMeasurement],
    heads: Mapping[str, tuple[HeadParams, stored.Frame]],
    seed: int,
) -> list[Outcome]:
    """heads: what was asked for and where, of requests whose face has a square of its own."""
    own = [HeadParams.of(model, subject.head) for subject in subjects]
    known: dict[tuple, HeadParams] = {}
    outcomes = []
    for request, picture in files_of(asked):
        name, person = request_id(request), request.person
        if (seen := measured.get(name)) is None:
            continue
        if name in heads:
            head, frame = heads[name]
            file = face_file(request)
            outcomes.append(Outcome(request, person, head, own[person], seen, file, frame))
            continue
        key = (person, request.head, request.number if request.head == "random" else 0)
        if key not in known:
            posed = prompt_suite.requested_head(model, subjects[person].head, request, seed)
            known[key] = HeadParams.of(model, posed)
        file = f"{PICTURES}/{picture}_00.png"
        outcomes.append(Outcome(request, person, known[key], own[person], seen, file))
    return outcomes
