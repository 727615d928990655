"""The watchdog ends a process whose steps hang, whatever hangs, and leaves every other alone."""

import signal
import subprocess
import sys

import pytest

from caphuman_jax.errors import HUNG
from caphuman_jax.runtime.watchdog import Watchdog

BEGIN = """
import ctypes, threading, time
from caphuman_jax.runtime.watchdog import Watchdog
lock = threading.Lock()
lock.acquire()
with Watchdog(0.2, " (the setting)") as watchdog:
    watchdog.step()
"""


def run(rest):
    done = subprocess.run([sys.executable, "-c", BEGIN + rest], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("hangs", ["lock.acquire()", "ctypes.PyDLL(None).sleep(1000)"])
def test_steps_that_hang(hangs):
    code, said = run(f"    {hangs}")
    assert 128 - code == HUNG
    assert 'File "<string>", line 8' in said
    if "lock" in hangs:  # no thread of Python runs during the call
        assert "no step was taken" in said and "(the setting)" in said


def test_the_timer_runs_only_while_steps_are_taken():
    left = lambda: signal.getitimer(signal.ITIMER_REAL)[0]
    with Watchdog(1000) as watchdog:
        assert 1000 < left() <= 6001, "the first step has six times as long"
        watchdog.step()
        assert 0 < left() <= 1001
        with watchdog.paused():
            assert left() == 0
        assert 0 < left() <= 1001
    assert left() == 0
    with Watchdog(0) as watchdog:
        watchdog.step()
        assert left() == 0
