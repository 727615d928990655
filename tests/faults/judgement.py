"""The faults, and what is right after each."""

from __future__ import annotations

import re

from processes import Outcome

KILLS = ("kill", "kill by clock", "kill worker", "term", "term by clock")
FAULTS = {
    "kill": "SIGKILL, at an event",
    "kill by clock": "SIGKILL, at a random time while it writes",
    "kill worker": "SIGKILL of a process that it started",
    "term": "SIGTERM, at an event",
    "term by clock": "SIGTERM, at a random time while it writes",
    "disk full": "a small tmpfs; ENOSPC from an event on where nothing can be mounted",
    "no space": "ENOSPC from an event on",
    "read-only": "a read-only file system",
    "turns read-only": "EROFS from an event on",
    "gone": "the output folder is removed at an event",
    "vanish": "a file that it reads or has written is removed at an event",
    "twice": "a second run of the same command, started at an event of the first",
    "clock": "the clock of the day jumps by 1 or 20 years at an event",
    "memory": "the device's memory is full at a program's N-th call",
    "NaN": "weights that are not numbers",
}
REFUSED = re.compile(r"exists? already|already exists|exists by now|exists and is not")
_MEMORY = re.compile(r"--(batch|memory|workers|size)|training\.batch_size|JAX_PLATFORMS")


def wrong_end(fault: str, outcome: Outcome, everything: bool) -> list[str]:
    """What is wrong with an exit code and what was printed."""
    code, error = outcome.code, outcome.error
    problems = marks_of_a_crash(error)
    allowed = {
        "kill": {-9},
        "kill by clock": {-9},
        "kill worker": {2, -9},  # the command's own process, before it starts another
        "term": {75},
        "term by clock": {75},
        "twice": {0, 2},
        "vanish": {0, 2, 3},
        "clock": {0},
        "memory": {2, 3},
        "NaN": {1, 2},
    }.get(fault, {2})
    if not outcome.struck or (
        fault in (*KILLS, "no space", "turns read-only", "gone") and everything
    ):
        allowed = allowed | {0}  # it came too late, or met nothing that matters
    if fault.startswith("term") and everything:
        allowed = allowed | {-15}  # as Python itself ends
    if code not in allowed:
        problems.append(f"exit code {code}: {error[-300:]}")
    if code == 0 and outcome.struck and not everything and fault not in KILLS:
        problems.append("it ends with 0, but not everything is there")
    told = [line for line in error.splitlines() if line.startswith("caphuman: error:")]
    if code == 2 and (len(told) != 1 or not error.strip().splitlines()[-1].startswith("caphuman:")):
        problems.append(f"not one line: {error[-500:]}")
    if fault == "memory" and code == 2 and not _MEMORY.search(error):
        problems.append(f"no setting is named: {error[-300:]}")
    return problems


def marks_of_a_crash(error: str) -> list[str]:
    """Tracebacks, and what Python says of exceptions that nobody handles."""
    marks = ("Traceback (most recent", "Exception ignored", "unexpected ", "Fatal Python error")
    return [f"{mark.strip()}: {error[-1500:]}" for mark in marks if mark in error]
