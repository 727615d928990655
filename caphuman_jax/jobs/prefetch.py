"""From jobs to conditionings while the accelerator works: photos measured in threads, heads posed,
hints rendered in batches.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import CapHumanError, PhotoError
from caphuman_jax.head.head import stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.io.files import printable, read_regular
from caphuman_jax.io.picture_formats import MAX_BYTES, reason
from caphuman_jax.jobs.jobs import Job
from caphuman_jax.person.identity_file import is_identity_file
from caphuman_jax.person.person import Person, measure_references
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import Reference, SubjectRequest
from caphuman_jax.runtime.fixed_batches import batches

log = logging.getLogger("caphuman_jax")

_PEOPLE, _HINTS = 128, 64  # kept: about 2 MB and 9 MB each at 512²


class People:
    """The persons of photos, each measured once, in threads and before they are needed. The last
    `keep` stay in memory.
    """

    def __init__(self, pipe: Pipeline, threads: int, keep: int = _PEOPLE):
        self._pipe, self._keep, self._guard = pipe, keep, threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photo")
        self._asked: collections.OrderedDict[tuple, Future] = collections.OrderedDict()
        self._known: collections.OrderedDict[tuple, Person] = collections.OrderedDict()
        self.measured = 0

    def start(self, photo: str, face: int | None) -> Future:
        """Start measuring a photo."""
        with self._guard:
            future = self._asked.get((photo, face))
            if future is None:
                future = self._asked[photo, face] = self._pool.submit(self._measure, photo, face)
            _keep_newest(self._asked, (photo, face), self._keep)
            return future

    def __call__(self, photo: str, face: int | None) -> Person:
        """The person in a photo or an identity file. Raises what `Pipeline.person` raises."""
        return self.start(photo, face).result()

    def close(self) -> None:
        """Cancel what has not been started and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _measure(self, photo, face):
        path = Path(photo)
        try:
            key = (hashlib.sha256(read_regular(path, MAX_BYTES)).hexdigest(), path.suffix, face)
        except OSError as error:
            raise PhotoError(f"{printable(photo)} cannot be read ({reason(error)})") from error
        with self._guard:
            known = self._known.get(key)
        if known is None:
            person = self._pipe.person(photo, face)
            # On the host, so that using it does not wait for pictures that are being made.
            known = dataclasses.replace(person, head=jax.device_get(person.head))
            with self._guard:
                self.measured += 1
                self._known[key] = known
                _keep_newest(self._known, key, self._keep)
        # The same photo under another name; what an identity file says of itself stays.
        return known if is_identity_file(path) else dataclasses.replace(known, name=path.name)


class Conditionings:
    """Jobs → conditionings without hints; `start` measures their photos in advance."""

    def __init__(self, pipe: Pipeline, people: People):
        self._pipe, self._people = pipe, people
        self._last: tuple[Job, Conditioning] | None = None

    def start(self, job: Job) -> None:
        """Start measuring the photos of a job."""
        for subject in job.request.subjects:
            for photo in subject.references:
                self._people.start(_path(photo), subject.face)
            if subject.head.photo is not None:
                self._people.start(_path(subject.head.photo), subject.head.photo_face)

    def __call__(self, job: Job) -> Conditioning:
        """Raises CapHumanError."""
        if self._last is None or self._last[0] is not job:
            with _on_host():
                subjects = tuple(map(self._measured, job.request.subjects))
                request = dataclasses.replace(job.request, subjects=subjects)
                conditioning = self._pipe.condition(request, with_hints=False)
            self._last = job, conditioning
        return self._last[1]

    def _measured(self, subject: SubjectRequest) -> SubjectRequest:
        """With persons in place of photos."""
        head = subject.head
        if head.photo is not None:
            head = dataclasses.replace(head, photo=self._people(_path(head.photo), head.photo_face))
        people = measure_references(
            subject.references, lambda photo: self._people(_path(photo), subject.face)
        )
        return dataclasses.replace(subject, references=people, head=head)


def _path(photo: Reference) -> str:
    assert isinstance(photo, str), "jobs name their photos"
    return photo


class Hints:
    """Adds hints to conditionings, rendered `batch` heads at a time on the accelerator. Equal heads
    are rendered once; the last `keep` stay in memory. `blank`: zeros instead, for ablations.
    """

    def __init__(self, pipe: Pipeline, batch: int, keep: int = _HINTS, blank: bool = False):
        self._pipe, self._batch, self._keep, self._blank = pipe, batch, keep, blank
        self._known: collections.OrderedDict[tuple, jax.Array] = collections.OrderedDict()
        self.rendered = 0

    def __call__(self, conditionings: Sequence[Conditioning]) -> list[Conditioning]:
        """The conditionings, all of one size, with hints."""
        keys = {
            id(one): [_key(subject.head, one.request.params.shape) for subject in one.subjects]
            for one in conditionings
        }
        wanted = {
            key: subject.head
            for one in conditionings
            for key, subject in zip(keys[id(one)], one.subjects)
        }
        here = {key: self._known[key] for key in wanted if key in self._known}
        missing = [key for key in wanted if key not in here]
        for part, filled in batches(missing, self._batch):
            heads = stack(jax.device_get([wanted[key] for key in filled]))
            size = conditionings[0].request.params.shape
            rendered = render_hints_batch(self._pipe.head_model, heads, *size)
            here |= zip(part, jnp.zeros_like(rendered) if self._blank else rendered)
            self.rendered += len(part)
        for key, hints in here.items():
            self._known[key] = hints
            _keep_newest(self._known, key, self._keep)
        done: dict[int, Conditioning] = {}
        for one in conditionings:
            if id(one) not in done:
                subjects = [
                    dataclasses.replace(subject, hints=here[key])
                    for subject, key in zip(one.subjects, keys[id(one)])
                ]
                done[id(one)] = dataclasses.replace(one, subjects=tuple(subjects))
        return [done[id(one)] for one in conditionings]


def reason_of(problem: Exception) -> str:
    """Why a job failed, in one line."""
    text = " ".join(str(problem).split())
    return text if isinstance(problem, CapHumanError) else f"{type(problem).__name__}: {text}"


def _key(head, size) -> tuple:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(head):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest(), size


def _keep_newest(known: collections.OrderedDict, key, count: int) -> None:
    known.move_to_end(key)
    while len(known) > count:
        known.popitem(last=False)


@contextlib.contextmanager
def _on_host() -> Iterator[None]:
    """Small computations on the CPU, where there is one: on the accelerator each would wait for the
    pictures in the works.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = None
    with (
        jax.default_device(device)
        if device is not None and jax.default_backend() != "cpu"
        else contextlib.nullcontext()
    ):
        yield
