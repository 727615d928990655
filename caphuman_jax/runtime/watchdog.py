"""Ends a process whose steps hang: a deadlock, an input pipeline that gives nothing, a call that
never returns. Heartbeats are sent by a thread of their own, and continue meanwhile.

A timer of the operating system ends the process (SIGALRM, exit code 142), so a call that holds
Python's lock does not keep it alive. The stack of every thread is printed first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from typing import TextIO

from caphuman_jax.errors import HUNG

_FIRST = 6
"""The first step may take this many limits: it loads programs and fills the input pipeline."""
_SLOWEST = 10
"""A step may always take this many times the slowest one before it."""
_LEFT = 5.0
"""Seconds after which the process leaves by itself where the signal does not end it: process 1 of a
container ignores it.
"""


class Watchdog:
    """Wants a sign of life from each step; as a context, from its begin to its end.

    Args of the constructor:
        seconds: that a step may take; 0: any time.
        what: names the setting, for the message.
        stream: where message and stacks go.
    """

    def __init__(self, seconds: float, what: str = "", stream: TextIO | None = None):
        self.seconds, self._what, self._stream = seconds, what, stream or sys.stderr
        self._since, self._slowest, self._limit = time.monotonic(), 0.0, _FIRST * seconds
        self._deadline, self._ended = float("inf"), threading.Event()

    def __enter__(self) -> Watchdog:
        if self.seconds:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without file
                faulthandler.register(signal.SIGALRM, self._stream, all_threads=True, chain=True)
            threading.Thread(target=self._explain, name="watchdog", daemon=True).start()
            self._start()
        return self

    def __exit__(self, *_) -> None:
        if self.seconds:
            self._stop()
            self._ended.set()
            faulthandler.unregister(signal.SIGALRM)

    def step(self) -> None:
        """A step has ended."""
        if self.seconds:
            self._slowest = max(self._slowest, time.monotonic() - self._since)
            self._limit = max(self.seconds, _SLOWEST * self._slowest)
            self._start()

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Whatever the block does, evaluating or saving, may take any time."""
        if self.seconds:
            self._stop()
        try:
            yield
        finally:
            if self.seconds:
                self._start()

    def _start(self) -> None:
        self._since = time.monotonic()
        self._deadline = self._since + self._limit
        # A little later than the thread, which says why.
        signal.setitimer(signal.ITIMER_REAL, self._limit + 0.5)

    def _stop(self) -> None:
        self._deadline = float("inf")
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _explain(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() > self._deadline:
                print(
                    f"caphuman: error: no step was taken for {self._limit:.0f} s{self._what}; "
                    f"this host ends with {HUNG}, and the same command resumes from the last "
                    f"checkpoint. What its threads do:",
                    file=self._stream,
                    flush=True,
                )
                if not self._ended.wait(_LEFT) and time.monotonic() > self._deadline:
                    os._exit(HUNG)
