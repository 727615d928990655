"""The watchdog ends a process whose steps hang, whatever hangs, and leaves every other alone."""

import subprocess
import sys

import pytest

from caphuman_jax.errors import HUNG

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


def test_steps_that_do_not():
    pause = "    with watchdog.paused(): time.sleep(0.8)\n"
    steps = "    for _ in range(3): watchdog.step()\ntime.sleep(0.8)"
    assert run(pause + steps) == (0, "")
