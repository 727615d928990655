"""The work of one process: it claims units, makes their pictures in full batches, writes them and
marks the units as done.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io import files
from caphuman_jax.jobs.order import Picture, Plan
from caphuman_jax.jobs.outputs import Files, Shards
from caphuman_jax.jobs.prefetch import Conditionings, Hints, People, reason_of
from caphuman_jax.jobs.run_folder import RunFolder
from caphuman_jax.pipeline.conditioning import Conditioning, Progress
from caphuman_jax.pipeline.image_batches import to_bytes
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.runtime.fixed_batches import filled_up

log = logging.getLogger("caphuman_jax")

_MOST_NAMED = 20  # failed jobs
_OPEN_KINDS = 4  # incomplete batches of different programs that are kept open


@dataclasses.dataclass(eq=False)
class _Unit:
    """A claimed unit: the lines of its pictures so far, by their place in it, and what the output
    keeps until it is complete.
    """

    number: int
    left: int
    made: dict[int, dict] = dataclasses.field(default_factory=dict)
    failed: dict[int, dict] = dataclasses.field(default_factory=dict)
    payloads: dict[int, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """A picture to be made: where it belongs, and its conditioning, or why there is none."""

    unit: _Unit
    place: int
    picture: Picture
    conditioning: Conditioning | None = None
    failure: str | None = None

    @property
    def conditioned(self) -> Conditioning:
        """The conditioning of a row without a failure."""
        assert self.conditioning is not None, self.failure
        return self.conditioning


class _Flush:
    """In place of a row: nothing more comes for now, so incomplete batches are made."""


class Runner:
    """Makes all pictures of a plan that no other process makes.

    Args:
        pipe: makes them.
        plan: their order.
        folder: where units are claimed and marked as done.
        output: where pictures are written.
        batch: pictures at a time on all devices together.
        report: (made, failed, found), called as pictures are done, from any thread.
        progress: see `conditioning.Progress`.
        share: see `RunFolder.claims`.
        stopped: whether to stop after what has been started.
        blank_hints: hide the heads from the model, for ablations.
        alone: entered whenever a batch or the conditioning of an edit is computed, for an output
            that computes, too.
    """

    def __init__(
        self,
        pipe: Pipeline,
        plan: Plan,
        folder: RunFolder,
        output: Files | Shards,
        batch: int,
        report: Callable[[int, int, int], None],
        progress: Progress,
        share: tuple[int, int] = (0, 1),
        stopped: Callable[[], bool] = lambda: False,
        blank_hints: bool = False,
        alone: contextlib.AbstractContextManager | None = None,
    ):
        self.pipe, self.plan, self.folder, self.output, self.batch = (
            pipe,
            plan,
            folder,
            output,
            batch,
        )
        self._report, self._progress, self._share = report, progress, share
        on_cpu, cores = jax.default_backend() == "cpu", os.cpu_count() or 1
        writers = max(2, min(16, cores - 1))
        self._people = People(pipe, 1 if on_cpu else max(2, min(8, cores // 2)))
        self._conditionings = Conditionings(pipe, self._people)
        self._hints = Hints(pipe, pipe.batch, blank=blank_hints)
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="writer")
        # The accelerator computes a batch while the previous one is copied to the host; a CPU would
        # compute both at once.
        self._depth = 0 if on_cpu else 1
        self._room = threading.BoundedSemaphore(
            2 * batch + 2 * writers
        )  # pictures that wait to be written
        self._rows: queue.Queue = queue.Queue(4 * batch)
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._broken: BaseException | None = None
        self._asked_to_stop, self._failed_jobs = stopped, set()
        self._alone = alone or contextlib.nullcontext()

    def run(self) -> None:
        """Run until everything is done, or until asked to stop: then it finishes what was started
        and skips the rest. Raises CapHumanError, and whatever broke one of the threads.
        """
        preparing = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        preparing.start()
        buckets: dict[tuple, list[_Row]] = {}
        waiting: collections.deque = collections.deque()
        try:
            while (row := self._next()) is not None:
                if isinstance(row, _Flush):
                    self._make_rest(buckets, waiting)
                elif row.failure is not None:
                    self._fail(row, row.failure)
                else:
                    bucket = buckets.setdefault(row.conditioning.batch_key, [])
                    bucket.append(row)
                    if len(bucket) == self.batch:
                        self._make(buckets.pop(row.conditioning.batch_key), waiting)
                    elif len(buckets) > _OPEN_KINDS:
                        self._make(buckets.pop(next(iter(buckets))), waiting)
            if not self._asked_to_stop():
                self._make_rest(buckets, waiting)
            self._make_rest({}, waiting)
        finally:
            self._ended.set()
            self._drain()
            preparing.join()
            self._people.close()
            self._pool.shutdown(wait=True)
        if isinstance(self._broken, OSError):
            raise files.explained(self._broken, str(self.folder.out)) from self._broken
        if self._broken is not None:
            raise self._broken

    def _stopped(self) -> bool:
        return self._ended.is_set() or self._broken is not None or self._asked_to_stop()

    def _next(self):
        """The next row, _Flush, or None at the end."""
        while True:
            if self._broken is not None or self._asked_to_stop():
                return None
            try:
                return self._rows.get(timeout=0.2)
            except queue.Empty:
                continue

    def _prepare(self) -> None:
        """The thread that fills the queue."""
        try:
            for row in self._all_rows():
                if not self._put(row):
                    return
            self._put(None)
        except BaseException as problem:  # noqa: BLE001 - raised by the thread that waits
            self._broken = problem

    def _put(self, row) -> bool:
        while not self._stopped():
            try:
                self._rows.put(row, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _drain(self) -> None:
        while True:
            try:
                self._rows.get_nowait()
            except queue.Empty:
                return

    def _all_rows(self) -> Iterator:
        """Rows of the units that this process claims. The photos of a unit are measured while the
        previous unit is made.
        """
        ahead: collections.deque = collections.deque()
        for number in self.folder.claims(self._share, self._stopped):
            if number is not None:
                unit, rows = self._opened(number)
                for row in rows:
                    self._conditionings.start(row.picture.job)
                ahead.append(rows)
            while ahead and (number is None or len(ahead) > 1):
                yield from self._prepared(ahead.popleft())
            if number is None:
                yield _Flush()
        for rows in ahead:
            yield from self._prepared(rows)

    def _opened(self, number: int) -> tuple[_Unit, list[_Row]]:
        """A claimed unit and what is missing of it."""
        pictures = list(self.plan.unit(number))
        unit, rows = _Unit(number, len(pictures)), []
        there = {
            place: line
            for place, picture in enumerate(pictures)
            if (line := self.output.there(picture)) is not None
        }
        for place, picture in enumerate(pictures):
            if place not in there:
                rows.append(_Row(unit, place, picture))
        if there:
            self._report(0, 0, len(there))
        for place, line in there.items():
            self._close(_Row(unit, place, pictures[place]), made=line)
        return unit, rows

    def _prepared(self, rows: list[_Row]) -> Iterator[_Row]:
        for row in rows:
            edits = row.picture.job.request.edit is not None  # photos are measured and encoded
            try:
                with self._alone if edits else contextlib.nullcontext():
                    conditioning = self._conditionings(row.picture.job)
                yield dataclasses.replace(row, conditioning=conditioning)
            except Exception as problem:  # noqa: BLE001 - a photo may cause anything; other jobs continue
                yield dataclasses.replace(row, failure=reason_of(problem))

    def _make_rest(self, buckets: dict, waiting: collections.deque) -> None:
        while buckets:
            self._make(buckets.pop(next(iter(buckets))), waiting)
        while waiting:
            self._collect(*waiting.popleft())

    def _make(self, rows: list[_Row], waiting: collections.deque) -> None:
        """Begin a batch, filled up with its last picture, and collect those before it."""
        filled = filled_up(rows, self.batch)
        try:
            with self._alone:
                conditionings = self._hints([row.conditioned for row in filled])
                pictures, _ = self.pipe.make(
                    [(one, row.picture.number) for one, row in zip(conditionings, filled)],
                    self._progress,
                )
                if self._depth == 0:
                    jax.block_until_ready(pictures)
            waiting.append((rows, pictures))
            while len(waiting) > self._depth:
                self._collect(*waiting.popleft())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                advice = "take a smaller --batch, --memory low, or --fsdp"
                raise CapHumanError(
                    f"the memory of the devices does not hold {self.batch} pictures at a time; "
                    f"{advice}"
                ) from error
            raise

    def _collect(self, rows: list[_Row], made: jax.Array) -> None:
        filled = filled_up(rows, self.batch)
        with self._alone:
            pictures = self.pipe.detailed(
                [(row.conditioned, row.picture.number) for row in filled],
                np.asarray(made),
                self._progress,
            )
        for row, picture in zip(rows, pictures):
            while not self._room.acquire(timeout=0.2):
                if self._broken is not None:
                    return
            self._pool.submit(self._write, row, picture)

    def _write(self, row: _Row, picture: np.ndarray) -> None:
        """In a writer's thread."""
        try:
            if not np.isfinite(picture).all():
                self._fail(
                    row,
                    "the picture contains numbers that are not finite; --dtype float32 or a lower "
                    "guidance_scale may help",
                )
                return
            settings = {
                **row.conditioned.settings,
                "index": row.picture.number,
                "job": row.picture.job.id,
            }
            line, payload = self.output.store(
                row.picture, row.conditioned.finish(to_bytes(picture)), settings
            )
            self._close(row, made=line, payload=payload)
            self._report(1, 0, 0)
        except BaseException as problem:  # noqa: BLE001 - raised by the thread that waits
            self._broken = self._broken or problem
        finally:
            self._room.release()

    def _fail(self, row: _Row, reason: str) -> None:
        job = row.picture.job
        with self._guard:
            if job.id not in self._failed_jobs and len(self._failed_jobs) < _MOST_NAMED:
                log.warning("job %s (%s) failed: %s", job.id, job.where, reason)
            self._failed_jobs.add(job.id)
        self._close(row, failed={"where": job.where, "reason": reason})
        self._report(0, 1, 0)

    def _close(
        self,
        row: _Row,
        made: dict | None = None,
        failed: dict | None = None,
        payload: bytes | None = None,
    ) -> None:
        """A picture is made or has failed; with the last one its unit is done."""
        unit, job = row.unit, row.picture.job
        line = {"id": job.id, "number": row.picture.number}
        with self._guard:
            if failed is not None:
                unit.failed[row.place] = line | failed
            else:
                unit.made[row.place] = (
                    line
                    | (made or {})
                    | {"prompt": job.request.prompt, "seed": job.request.params.seed}
                )
                if payload is not None:
                    unit.payloads[row.place] = payload
            unit.left -= 1
            complete = unit.left == 0
        if complete:
            in_order = lambda things: [things[place] for place in sorted(things)]
            lines = self.output.finish(
                unit.number, self.plan.units, in_order(unit.made), in_order(unit.payloads)
            )
            self.folder.commit(unit.number, {"made": lines, "failed": in_order(unit.failed)})
