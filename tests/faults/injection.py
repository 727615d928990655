"""A fault at a chosen moment of a command: when it opens, renames, links, makes, removes or flushes
its N-th file or folder below a watched folder.

These moments are the only ones at which the folder changes for whoever looks at it later, so
counting them covers what a clock would hit by luck. Python reports them to audit hooks
(`sys.addaudithook`), whichever library asks for them; `os.fsync` is replaced, since it reports
nothing. All processes of a command count together, by appending to one file.

Only the standard library is imported: `hook/sitecustomize.py` runs this in every process.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sys
import time

VARIABLE = "CAPHUMAN_FAULT"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {"os.rename": (0, 1), "os.link": (0, 1), "os.mkdir": (0,), "os.remove": (0,)}
_EVENTS |= {"os.rmdir": (0,), "os.truncate": (0,), "os.symlink": (1,)}
_YEAR = 31_557_600.0
_busy = False


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens, and when.

    Attributes:
        kind: count (nothing happens), kill, kill-worker, term, full, read-only, gone, vanish, clock
            or memory.
        at: number of the event, from 1; of memory, of the call of a compiled program.
        watch: the folder whose events count, absolute.
        notes: a folder for the count and for whether the fault happened.
        root: process number of the command.
        victims: vanish: one of these files, or of those in these folders, is removed.
        seed: of what is chosen at random.
    """

    kind: str
    at: int
    watch: str
    notes: str
    root: int = 0
    victims: tuple[str, ...] = ()
    seed: int = 0


def install(fault: Fault) -> None:
    """Start counting in this process, and in those that it starts."""
    os.environ[VARIABLE] = json.dumps(dataclasses.asdict(fault))
    with open(os.path.join(fault.notes, "processes"), "a") as file:
        file.write(f"{os.getpid()}\n")
    counter = os.open(os.path.join(fault.notes, "count"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def happened(path: str | None) -> None:
        global _busy
        if _busy:  # what the fault itself does
            return
        os.write(counter, b".")
        number = os.lseek(counter, 0, os.SEEK_CUR)
        if number < fault.at or fault.kind in ("count", "memory"):
            return
        _busy = True
        try:
            _strike(fault, path, number == fault.at)
        finally:
            _busy = False

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (flags or 0) & _WRITES:
                return
            if _below(path, -1, fault.watch):
                happened(os.fsdecode(path))
        elif event in _EVENTS:
            folder = arguments[-1] if isinstance(arguments[-1], int) else -1
            for place in _EVENTS[event]:
                if _below(arguments[place], folder, fault.watch):
                    happened(os.fsdecode(arguments[place]))
                    return

    sys.addaudithook(hook)
    flush = os.fsync

    def fsync(file) -> None:
        number = file if isinstance(file, int) else file.fileno()
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            path = ""
        if path.startswith(fault.watch):
            happened(None)
        flush(file)

    os.fsync = fsync
    if fault.kind == "memory":
        _fail_programs(fault)


def _strike(fault: Fault, path: str | None, first: bool) -> None:
    if first:
        with open(os.path.join(fault.notes, "struck"), "w") as file:
            file.write(str(path))
    if fault.kind == "full" or fault.kind == "read-only":
        number = errno.ENOSPC if fault.kind == "full" else errno.EROFS
        raise OSError(number, os.strerror(number), *([path] if path else []))
    if not first:
        return
    if fault.kind == "kill":
        os.kill(fault.root, signal.SIGKILL)
        if fault.root != os.getpid():
            time.sleep(0.3)  # this process goes on for a moment, as after a real kill
    elif fault.kind == "kill-worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "term":
        os.kill(fault.root, signal.SIGTERM)
    elif fault.kind == "gone":
        there = [
            os.path.relpath(os.path.join(folder, name), fault.watch)
            for folder, _, names in os.walk(fault.watch)
            for name in names
        ]
        with open(os.path.join(fault.notes, "there"), "w") as file:
            json.dump(there, file)
        for name in os.listdir(fault.watch):
            shutil.rmtree(os.path.join(fault.watch, name), ignore_errors=True)
    elif fault.kind == "vanish":
        files = sorted(
            os.path.join(folder, name)
            for victim in fault.victims
            for folder, _, names in os.walk(victim)
            for name in names
        ) + [victim for victim in fault.victims if os.path.isfile(victim)]
        if files:
            chosen = random.Random(fault.seed).choice(files)
            os.unlink(chosen)
            with open(os.path.join(fault.notes, "vanished"), "w") as file:
                file.write(chosen)
    elif fault.kind == "clock":
        _jump(random.Random(fault.seed).choice((-20, -1, 1, 20)) * _YEAR)


def _jump(seconds: float) -> None:
    """The clock of the day is set; the monotonic one is not, as in reality."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def _fail_programs(fault: Fault) -> None:
    """The N-th call of a program ends as on a device whose memory is full. Programs that are
    compiled ahead are counted at every call, those of `jax.jit` at their first.
    """
    import jax
    from jax._src.interpreters import pxla

    calls = [0]

    def limited(call):
        def run(self, *args, **named):
            calls[0] += 1
            if calls[0] >= fault.at:
                with open(os.path.join(fault.notes, "struck"), "w") as file:
                    file.write("program")
                raise jax.errors.JaxRuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."
                )
            return call(self, *args, **named)

        return run

    for kind in (jax.stages.Compiled, pxla.ExecuteReplicated):
        kind.__call__ = limited(kind.__call__)


def _below(path, folder: int, watch: str) -> bool:
    try:
        path = os.fsdecode(path)
        if not os.path.isabs(path):
            base = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
            path = os.path.join(base, path)
    except (OSError, TypeError):
        return False
    return os.path.normpath(path).startswith(watch)


def from_environment() -> Fault | None:
    """The fault that a parent process installed."""
    text = os.environ.get(VARIABLE)
    return Fault(**json.loads(text)) if text else None
