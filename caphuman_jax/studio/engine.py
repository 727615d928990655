"""The loaded model: it measures photos, and makes the pictures of all requests in batches."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io.images import encode_png
from caphuman_jax.io.metadata import metadata
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.person.person import Person, measure_references
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.image_batches import check_finite, filled_up, to_bytes
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import Request, SubjectRequest
from caphuman_jax.studio.failures import RequestError, reason_of, without_folder
from caphuman_jax.studio.metrics import Metrics
from caphuman_jax.studio.options import ServerOptions
from caphuman_jax.studio.sessions import Session

log = logging.getLogger("caphuman_jax")

_FIRST_GUESS = 2.0  # seconds of a picture, before one was made
_COMPRESSION = 1  # of PNG files: 7 % larger than with 6, and three times as fast
_PAUSE = 5.0  # seconds after the last photo, before work that nobody waits for begins
_LOOK = 0.2  # seconds between looks whether it may

Listener = Callable[[str, dict[str, Any]], None]
"""listener(kind, facts), called from the engine's threads: "started", "stage", "picture" with its
PNG file, and "done", "failed" or "cancelled" at the end."""


@dataclasses.dataclass(eq=False)
class Work:
    """A request for pictures, from its arrival to its last picture.

    Attributes:
        request: what is asked for.
        session: whose photos it uses.
        listener: see `Listener`.
        todo: numbers of the pictures that nobody has begun.
        left: pictures that are not finished.
        conditioning: once it is prepared.
        notices: warnings about its photos and heads.
        idle: nobody waits for it: it is made only while nothing else is to be done.
        compiled: an idle one's program is there, though its pictures may not be.
    """

    request: Request
    session: Session
    listener: Listener
    todo: collections.deque[int]
    left: int
    arrived: float = dataclasses.field(default_factory=time.perf_counter)
    conditioning: Conditioning | None = None
    key: tuple = ()
    notices: list[str] = dataclasses.field(default_factory=list)
    idle: bool = False
    compiled: bool = False
    ended: bool = False

    @property
    def conditioned(self) -> Conditioning:
        """The conditioning of a work that is prepared."""
        assert self.conditioning is not None
        return self.conditioning


class Engine:
    """One pipeline and the requests that wait for it.

    Args:
        pipe: the model.
        batch: pictures at a time on all devices together.
        options: of the server.
        metrics: counts what is made.
    """

    def __init__(self, pipe: Pipeline, batch: int, options: ServerOptions, metrics: Metrics):
        self.pipe, self._batch, self._options, self._metrics = pipe, batch, options, metrics
        # The smallest batch fills the devices; every batch size is compiled once.
        self._least = max(1, batch // pipe.batch)
        self._seconds_each = _FIRST_GUESS
        self._active: set[Work] = set()
        self._ready: collections.deque[Work] = collections.deque()
        self._change, self._closed = threading.Condition(), False
        # Whoever has opened the page will drop a photo.
        self._attending, self._attended = 0, time.monotonic() if options.page else -_PAUSE
        # On a CPU, photos and pictures share the cores.
        on_cpu, cores = jax.default_backend() == "cpu", os.cpu_count() or 1
        threads = 1 if on_cpu else max(2, min(8, cores // 2))
        self._measuring = threading.BoundedSemaphore(threads)
        self._preparing = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._writing = ThreadPoolExecutor(2, thread_name_prefix="write")
        self._sampling = threading.Thread(target=self._run, name="sample", daemon=True)
        self._sampling.start()

    @property
    def waiting(self) -> int:
        """Requests that wait or are made, without idle ones."""
        return sum(not work.idle for work in list(self._active))

    def check(self, fields: dict[str, Any], session: Session) -> Request:
        """A job's fields as a request; photos are uploads of the session.

        Raises:
            RequestError: 400 with everything that is wrong.
        """
        wrong, request = Checker(self.pipe.config, session.find)(fields, session.folder)
        most = self._options.max_pictures
        if request is not None and request.params.num_images > most:
            wrong.append(f"num_images: this server makes at most {most} pictures for a request")
        if request is not None:
            largest = (4 * self.pipe.config.image_size) ** 2
            height, width = request.params.shape
            if height * width > largest:
                wrong.append(f"size: this server makes pictures of at most {largest:,} pixels")
        if wrong or request is None:
            raise RequestError(400, *wrong)
        return request

    def expect(self, request: Request) -> None:
        """Begin to read the compiled programs that a request will need; see
        `ProgramCache.expect`.
        """
        self.pipe.programs.expect(request, self._least)

    def submit(
        self, request: Request, session: Session, listener: Listener, idle: bool = False
    ) -> Work:
        """Let a request wait for its pictures.

        Args:
            request: what is asked for.
            session: whose photos it uses.
            listener: see `Listener`.
            idle: see `Work`.

        Raises:
            RequestError: 429 where the queue is full.
        """
        numbers = collections.deque(request.numbers)
        with self._change:
            if (waiting := self.waiting) >= self._options.queue:
                rows = sum(work.left for work in self._active)
                seconds = max(1, round(rows * self._seconds_each / waiting))
                raise RequestError(
                    429,
                    f"{waiting} requests wait already; try again in {seconds} s",
                    headers={"Retry-After": str(seconds)},
                )
            work = Work(request, session, listener, numbers, len(numbers), idle=idle)
            self._active.add(work)
        self._preparing.submit(self._prepare, work)
        return work

    def cancel(self, work: Work) -> None:
        """Make nothing more of a request; does nothing where it has ended."""
        if self._end(work, "cancelled", {}):
            self._metrics.cancelled.inc()

    @contextlib.contextmanager
    def attended(self) -> Generator[None]:
        """While somebody's photo is read or measured, and a while after that, no idle work begins:
        they will want its head, and turn it.
        """
        with self._change:
            self._attending += 1
        try:
            yield
        finally:
            with self._change:
                self._attending -= 1
                self._attended = time.monotonic()

    def person(self, session: Session, path: str, face: int | None) -> Person:
        """The person in an upload of a session; see `Pipeline.person`."""

        def measure() -> Person:
            with self._measuring:
                person = self.pipe.person(path, face)
            # On the host, so that using it does not wait for pictures that are being made.
            return dataclasses.replace(person, head=jax.device_get(person.head))

        return session.person(path, face, measure)

    def close(self) -> None:
        """End all requests and threads."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for work in list(self._active):
            self.cancel(work)
        self._preparing.shutdown(cancel_futures=True)
        self._sampling.join()
        self._writing.shutdown()

    def _prepare(self, work: Work) -> None:
        """In its thread: photos are measured, heads posed, hints rendered."""
        if work.ended:
            return
        started = time.perf_counter()
        self._metrics.seconds.labels("queue").observe(started - work.arrived)
        try:
            work.listener("stage", {"stage": "photo"})
            with notices() as collected:
                subjects = tuple(self._measured(work, one) for one in work.request.subjects)
                request = dataclasses.replace(work.request, subjects=subjects)
                work.conditioning = self.pipe.condition(request)
            work.key = work.conditioning.batch_key
            folder = str(work.session.folder)
            work.notices = [without_folder(line, folder) for line in collected]
        except Exception as error:  # noqa: BLE001 - a photo may cause anything
            self._fail([work], error)
            return
        self._metrics.seconds.labels("prepare").observe(time.perf_counter() - started)
        work.listener("started", {"notices": work.notices})
        with self._change:
            if not work.ended:
                self._ready.append(work)
                self._change.notify_all()

    def _measured(self, work: Work, subject: SubjectRequest) -> SubjectRequest:
        """With persons in place of photos."""
        person = lambda path, face: self.person(work.session, path, face)
        head = subject.head
        if head.photo is not None:
            head = dataclasses.replace(head, photo=person(head.photo, head.photo_face))
        people = measure_references(subject.references, lambda photo: person(photo, subject.face))
        return dataclasses.replace(subject, references=people, head=head)

    def _run(self) -> None:
        """The thread that makes the pictures."""
        while True:
            with self._change:
                while not (self._closed or self._next_work() or self._to_compile()):
                    self._change.wait(_LOOK if self._ready else None)
                if self._closed:
                    return
                rows = self._next_rows() if self._next_work() else []
                idle = self._to_compile()
            if rows:
                self._make(rows)
            elif idle:
                idle.compiled = True
                filled = filled_up([(idle.conditioned, idle.todo[0])], self._least)
                with contextlib.suppress(Exception):  # `_make` reports it
                    self.pipe.program(filled)

    def _to_compile(self) -> Work | None:
        """An idle work whose program can be compiled before its picture is made."""
        if self._attending or not all(one.idle for one in self._active):
            return None
        return next((one for one in self._ready if not one.compiled), None)

    def _next_work(self, key: tuple | None = None) -> Work | None:
        """The work whose turn it is, of those with this key; idle ones come last, and not before
        all else is done.
        """
        ready = [one for one in self._ready if key in (None, one.key)]
        work = min(ready, key=lambda one: one.idle, default=None)
        if work is None or not work.idle:
            return work
        unattended = not self._attending and time.monotonic() - self._attended >= _PAUSE
        return work if unattended and all(one.idle for one in self._active) else None

    def _next_rows(self) -> list[tuple[Work, int]]:
        """The next batch: requests take turns, and all that can be made in one batch are."""
        rows: list[tuple[Work, int]] = []
        first = self._next_work()
        assert first is not None
        while len(rows) < self._batch:
            work = self._next_work(first.key)
            if work is None:
                break
            self._ready.remove(work)
            if work.ended or not work.todo:
                continue
            rows.append((work, work.todo.popleft()))
            if work.todo:
                self._ready.append(work)
        return rows

    def _make(self, rows: list[tuple[Work, int]]) -> None:
        started = time.perf_counter()
        size = self._least if len(rows) <= self._least else self._batch
        works = list({id(work): work for work, _ in rows}.values())

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "compile":
                for work in works:
                    work.listener("stage", {"stage": "pictures" if done else "compile"})

        try:
            filled = [(work.conditioned, number) for work, number in filled_up(rows, size)]
            images, _ = self.pipe.make(filled, progress)
            made = self.pipe.detailed(filled, np.asarray(images), progress)[: len(rows)]
            check_finite(made)
        except Exception as error:  # noqa: BLE001 - the other requests are made all the same
            self._fail(works, error)
            return
        seconds = time.perf_counter() - started
        self._metrics.seconds.labels("pictures").observe(seconds)
        self._metrics.batch.observe(len(rows))
        self._seconds_each = 0.7 * self._seconds_each + 0.3 * seconds / len(rows)
        for (work, number), image in zip(rows, made):
            self._writing.submit(self._finish, work, number, image)
        for work in [one for one in list(self._ready) if one.idle and one.key == works[0].key]:
            self._end(work, "done", {"seconds": 0.0, "notices": []})  # its program has run

    def _finish(self, work: Work, number: int, image: np.ndarray) -> None:
        """In a writer's thread."""
        if work.ended:
            return
        try:
            conditioning = work.conditioned
            settings = {**conditioning.settings, "index": number}
            picture = conditioning.finish(to_bytes(image))
            png = encode_png(picture, metadata(settings), _COMPRESSION)
        except Exception as error:  # noqa: BLE001 - reported to the one whose picture it is
            self._fail([work], error)
            return
        self._metrics.pictures.inc()
        with self._change:
            if work.ended:
                return
            work.left -= 1
            work.listener("picture", {"number": number, "settings": settings, "png": png})
        if work.left == 0:
            seconds = round(time.perf_counter() - work.arrived, 3)
            self._end(work, "done", {"seconds": seconds, "notices": work.notices})

    def _fail(self, works: list[Work], error: BaseException) -> None:
        expected = isinstance(error, CapHumanError)
        works = [work for work in works if not work.ended]  # whose photos are deleted
        if works and not expected:
            log.error("a request failed", exc_info=error)
        for work in works:
            reason = reason_of(error, str(work.session.folder))
            self._end(work, "failed", {"reason": reason, "status": 422 if expected else 500})

    def _end(self, work: Work, kind: str, facts: dict[str, Any]) -> bool:
        with self._change:
            if work.ended:
                return False
            work.ended = True
            self._active.discard(work)
            if work in self._ready:  # remove() would put all of the work into an error's message
                self._ready.remove(work)
            work.listener(kind, facts)
        return True


class _Notices(logging.Handler):
    """Collects the warnings of the thread that asks for them."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.here = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        collected = getattr(self.here, "collected", None)
        if collected is not None and record.levelno < logging.ERROR:
            collected.append(record.getMessage())


_collector = _Notices()
log.addHandler(_collector)


@contextlib.contextmanager
def notices() -> Generator[list[str]]:
    """The library's warnings in this thread while the block runs."""
    _collector.here.collected = collected = []
    try:
        yield collected
    finally:
        _collector.here.collected = None
