"""Batches on the mesh, the next one placed while a step runs."""

from __future__ import annotations

import queue
import threading

from caphuman_jax.errors import DataError
from caphuman_jax.runtime import sharding
from caphuman_jax.training.recipe import RowSource


class Feed:
    """Rows of global batches as arrays on the mesh, placed by a thread of its own.

    Args of the constructor:
        source: where rows come from; None where steps sample their own batches.
        samples: pictures of all hosts that were used up before.
        mesh: the devices that rows are split over.
    """

    def __init__(self, source: RowSource | None, samples: int, mesh):
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._first: dict | None = None
        self._stopped = threading.Event()
        self._thread = None
        if source is not None:
            self._thread = threading.Thread(
                target=self._work, args=(source, samples, mesh), name="batches", daemon=True
            )
            self._thread.start()

    def peek(self) -> dict:
        """The next batch, which stays the next."""
        if self._first is None:
            self._first = self.next()
        return self._first

    def next(self) -> dict:
        """The next batch, {} where there is no source. Raises what the source raised."""
        if self._thread is None:
            return {}
        if self._first is not None:
            batch, self._first = self._first, None
            return batch
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _work(self, source: RowSource, samples: int, mesh) -> None:
        stream = source.start(samples)
        try:
            for rows in stream:
                if not self._put(sharding.place_batch(rows, mesh)):
                    return
            self._put(DataError("the data ended; batches are expected without end"))
        except Exception as error:
            self._put(error)
        finally:
            getattr(stream, "close", lambda: None)()

    def _put(self, item) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
