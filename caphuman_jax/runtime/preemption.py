"""Being told to stop: SIGTERM of a cluster that takes the machine away, Ctrl-C, or the time being
up.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from caphuman_jax.errors import INTERRUPTED, RESTART

_CLOCK_STEPS = 20  # hosts agree on the time this often


class Preemption:
    """As a context: notes signals instead of dying of them. `reached(step)` is asked once before
    every step, on every host.

    Among several hosts a signal to any of them reaches all through JAX's preemption service, and
    they stop at the same step. A second Ctrl-C stops at once. minutes: the time after which to
    stop."""

    def __init__(self, minutes: float | None = None):
        self.reason: str | None = None
        self._deadline = None if minutes is None else time.monotonic() + minutes * 60
        self._before: dict = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupted)
            if not _several():  # JAX's own handler tells the other hosts
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What the program should leave with."""
        return {None: 0, "time": 0, "interrupted": INTERRUPTED, "preempted": RESTART}[self.reason]

    def reached(self, step: int) -> bool:
        """Whether to save and stop before `step`."""
        if _several():
            if multihost_utils.reached_preemption_sync_point(step):
                self.reason = self.reason or "preempted"
                return True
            if self.reason == "interrupted":
                return False  # every host stops together, a little later
        if self.reason is None and self._time_is_up(step):
            self.reason = "time"
        return self.reason is not None

    def _time_is_up(self, step: int) -> bool:
        if self._deadline is None or step % _CLOCK_STEPS:
            return False
        late = time.monotonic() > self._deadline
        return bool(multihost_utils.broadcast_one_to_all(np.int32(late))) if _several() else late

    def _terminated(self, *_) -> None:
        self.reason = "preempted"

    def _interrupted(self, *_) -> None:
        if self.reason == "interrupted":
            signal.default_int_handler(signal.SIGINT, None)
        self.reason = "interrupted"
        if _several():
            os.kill(os.getpid(), signal.SIGTERM)


def _several() -> bool:
    return jax.process_count() > 1
