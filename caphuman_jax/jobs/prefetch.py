"""From jobs to what the networks are given, ahead of the accelerator: photos measured in threads,
heads posed, hints rendered in batches.
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
import numpy as np

from caphuman_jax.errors import CapHumanError, PhotoError
from caphuman_jax.head.head import stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.jobs.jobs import Job
from caphuman_jax.person.person import Person, WantedHead
from caphuman_jax.pipeline.conditioning import Scene
from caphuman_jax.pipeline.pipeline import Pipeline

log = logging.getLogger("caphuman_jax")

_PEOPLE, _HINTS = 128, 64  # kept: about 2 MB and 9 MB each at 512²


class People:
    """The persons of photos, each measured once, in threads and before they are asked for; the last
    `keep` are kept.
    """

    def __init__(self, pipe: Pipeline, threads: int, keep: int = _PEOPLE):
        self._pipe, self._keep, self._guard = pipe, keep, threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photo")
        self._asked: collections.OrderedDict[tuple, Future] = collections.OrderedDict()
        self._known: collections.OrderedDict[tuple, Person] = collections.OrderedDict()
        self.measured = 0

    def ahead(self, photo: str, face: int | None) -> Future:
        """Begin with a photo; its future."""
        with self._guard:
            future = self._asked.get((photo, face))
            if future is None:
                future = self._asked[photo, face] = self._pool.submit(self._measure, photo, face)
            _keep_newest(self._asked, (photo, face), self._keep)
            return future

    def __call__(self, photo: str, face: int | None) -> Person:
        """The person in a photo or an identity file. Raises what `Pipeline.person` raises."""
        return self.ahead(photo, face).result()

    def close(self) -> None:
        """Begin with nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _measure(self, photo, face):
        path = Path(photo)
        try:
            key = (hashlib.sha256(path.read_bytes()).hexdigest(), path.suffix, face)
        except OSError as error:
            raise PhotoError(f"{photo} cannot be read ({error})") from error
        with self._guard:
            known = self._known.get(key)
        if known is None:
            person = self._pipe.person(photo, face)
            # On the host: nothing that is done with it then waits for pictures that are being made.
            known = dataclasses.replace(person, head=jax.device_get(person.head))
            with self._guard:
                self.measured += 1
                self._known[key] = known
                _keep_newest(self._known, key, self._keep)
        # The same photo under another name; what an identity file says of itself stays.
        return known if path.suffix == ".identity" else dataclasses.replace(known, name=path.name)


class Scenes:
    """Jobs → scenes without hints; `ahead` begins with their photos."""

    def __init__(self, pipe: Pipeline, people: People):
        self._pipe, self._people = pipe, people
        self._last: tuple[Job, Scene] | None = None

    def ahead(self, job: Job) -> None:
        """Begin with the photos of a job."""
        for one in job.options["people"]:
            for photo in one["reference"]:
                self._people.ahead(photo, one["face"])
            if one["head"] is not None and one["head"].photo is not None:
                self._people.ahead(one["head"].photo, one["head"].photo_face)

    def __call__(self, job: Job) -> Scene:
        """Raises CapHumanError."""
        if self._last is None or self._last[0] is not job:
            with _on_host():
                people = [self._measured(one) for one in job.options["people"]]
                scene = self._pipe.scene(
                    self._pipe.request(**{**job.options, "people": people}), with_hints=False
                )
            self._last = job, scene
        return self._last[1]

    def _measured(self, one):
        head: WantedHead | None = one["head"]
        if head is not None and head.photo is not None:
            head = dataclasses.replace(head, photo=self._people(head.photo, head.photo_face))
        return {
            "reference": [self._people(photo, one["face"]) for photo in one["reference"]],
            "head": head,
            "face": one["face"],
        }


class Hints:
    """Scenes with their hints, rendered `batch` heads at a time on the accelerator; equal heads are
    rendered once, the last of them kept.
    """

    def __init__(self, pipe: Pipeline, batch: int, keep: int = _HINTS):
        self._pipe, self._batch, self._keep = pipe, batch, keep
        self._known: collections.OrderedDict[tuple, jax.Array] = collections.OrderedDict()
        self.rendered = 0

    def __call__(self, scenes: Sequence[Scene]) -> list[Scene]:
        """The scenes, all of one size, with hints."""
        keys = {
            id(scene): [_key(look.head, scene.request.size) for look in scene.people]
            for scene in scenes
        }
        wanted = {
            key: look.head for scene in scenes for key, look in zip(keys[id(scene)], scene.people)
        }
        here = {key: self._known[key] for key in wanted if key in self._known}
        missing = [key for key in wanted if key not in here]
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            heads = stack(
                jax.device_get(
                    [wanted[key] for key in [*part, *[part[-1]] * (self._batch - len(part))]]
                )
            )
            here |= zip(
                part, render_hints_batch(self._pipe.head_model, heads, *scenes[0].request.size)
            )
            self.rendered += len(part)
        for key, hints in here.items():
            self._known[key] = hints
            _keep_newest(self._known, key, self._keep)
        done: dict[int, Scene] = {}
        for scene in scenes:
            if id(scene) not in done:
                people = [
                    dataclasses.replace(look, hints=here[key])
                    for look, key in zip(scene.people, keys[id(scene)])
                ]
                done[id(scene)] = dataclasses.replace(scene, people=tuple(people))
        return [done[id(scene)] for scene in scenes]


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
