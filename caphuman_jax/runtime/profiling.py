"""A trace of running steps, when a person asks for one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import jax

STEPS_ON_DEMAND = 10
MARK = "profile.now"
"""A file of this name in the work folder asks every host for a trace; SIGUSR1 asks one host."""


class Trace:
    """Traces of steps; `at(step)` is called before each step.

    Args of the constructor:
        folder: for the traces.
        mark: the file that asks for one.
        first: the step that a trace was ordered for in advance.
        count: how many steps that trace has, 0 for none.
        drain: waits for the steps in flight.
    """

    def __init__(self, folder: Path, mark: Path, first: int, count: int, drain: Callable[[], None]):
        self.folder, self.mark, self.first, self.count = folder, mark, first, count
        self.drain, self.running, self._asked = drain, False, False
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._signaled)

    def at(self, step: int) -> None:
        """Starts or stops before step `step`."""
        if self._asked and not self.running:
            self.first, self.count, self._asked = step, STEPS_ON_DEMAND, False
        if self.count and step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if self.running and step == self.first + self.count:
            self.drain()
            self._stop()

    def look(self) -> None:
        """Sees whether the file is there; called now and then, since a file system may be slow."""
        if self.mark.exists():
            self._asked = True
            if jax.process_index() == 0:
                self.mark.unlink(missing_ok=True)

    def close(self) -> None:
        self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _stop(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()

    def _signaled(self, *_) -> None:
        self._asked = True
