"""A job of several hosts on this machine: real processes on simulated devices, started, watched and
started again as a cluster would.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from caphuman_jax.errors import INTERRUPTED, RESTART, SettingError
from caphuman_jax.io import atomic
from caphuman_jax.launch import network
from caphuman_jax.launch.job import TOGETHER, Job
from caphuman_jax.launch.outcome import job_code, shell_code
from caphuman_jax.runtime.distributed import HEARTBEAT

_LOST, _ASKED = 10, 300
"""Seconds beyond a heartbeat that hosts have to end after one did, then they are killed: where one
was lost, and where all were asked to stop and save.
"""
_POLL = 0.1
_PR_SET_PDEATHSIG = 1

Log = Callable[[str], None]


def folder_of(job: Job) -> Path:
    """Where the hosts' logs are, and hosts.json."""
    return Path(job.logs or f"{job.name}.logs")


def shown(job: Job) -> list[str]:
    """The commands of the hosts, as they are typed in a shell."""
    lines = []
    for host in range(job.nodes):
        words = [*_wrapped(job, host), "caphuman", *job.command]
        environment = _settings(job, host, "10.77.0.1:8476")
        named = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        lines.append(f"{named} {shlex.join(words)} &")
    return [*lines, "wait"]


def start(job: Job, log: Log = print) -> int:
    """Runs the job to its end, with up to `max_restarts` further starts after RESTART.

    SIGTERM and Ctrl-C are passed on to all hosts, which save and leave; a second one kills them.

    Returns:
        The job's exit code, see `outcome.job_code`.

    Raises:
        SettingError: where the hosts cannot be started.
    """
    folder = folder_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    unknown = [key for key in job.wrap if not key.isdecimal() or int(key) >= job.nodes]
    if unknown:
        raise SettingError(f"--wrap {unknown[0]}=…: hosts are 0 to {job.nodes - 1}")
    code, attempt = RESTART, 0
    with network.make(job.network, job.nodes) as net, _Signals() as signals:
        log(f"{job.nodes} hosts ({type(net).__name__.lower()}); their logs are in {folder}")
        while code == RESTART and attempt <= job.max_restarts and not signals.received:
            net.connect()
            codes = _Hosts(job, net, folder, attempt).wait(signals, log)
            code, attempt = job_code(codes), attempt + 1
            told = ", ".join(f"host {n}: {shell_code(one)}" for n, one in enumerate(codes))
            log(f"start {attempt} ended with {code} ({told})")
    return INTERRUPTED if signals.received == signal.SIGINT and code == RESTART else code


def follow(job: Job, log: Log = print) -> int:
    """Prints the logs of all hosts until the job has ended."""
    folder = folder_of(job)
    state = _read_state(folder)
    positions = {entry["log"]: 0 for entry in state["hosts"]}
    running = True
    while running:
        running = _alive(state["launcher"])
        for host, entry in enumerate(state["hosts"]):
            path = folder / entry["log"]
            with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as file:
                file.seek(positions[entry["log"]])
                for line in file.read().splitlines():
                    log(f"host {host}: {line}")
                positions[entry["log"]] = file.tell()
        time.sleep(_POLL if running else 0)
    return 0


def stop(job: Job, log: Log = print) -> int:
    """Asks the job to save and end, and waits for it."""
    state = _read_state(folder_of(job))
    pid = state["launcher"]
    if not _alive(pid):
        log(f"{job.name} is not running")
        return 0
    os.kill(pid, signal.SIGTERM)
    while _alive(pid):
        time.sleep(_POLL)
    log(f"{job.name} has ended; the same launch resumes it")
    return 0


class _Signals:
    """As a context: notes SIGTERM and Ctrl-C instead of dying of them."""

    def __enter__(self) -> _Signals:
        self.received, self.count = 0, 0
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self.received, self.count = number, self.count + 1


class _Hosts:
    """The processes of one start."""

    def __init__(self, job: Job, net, folder: Path, attempt: int):
        self.job, self.folder = job, folder
        self.processes: list[subprocess.Popen] = []
        entries = []
        with contextlib.ExitStack() as stack:
            for host in range(job.nodes):
                name = f"host-{host}.log"
                file = stack.enter_context(open(folder / name, "ab" if attempt else "wb"))
                words = (*net.command(host), *_wrapped(job, host), *_program(), *job.command)
                environment = {**os.environ, **_settings(job, host, net.coordinator)}
                self.processes.append(
                    subprocess.Popen(
                        words,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=_ended_with_parent,
                    )
                )
                entries.append({"pid": self.processes[-1].pid, "log": name, "link": net.link(host)})
        state = {"launcher": os.getpid(), "start": attempt + 1, "hosts": entries}
        atomic.write_text(folder / "hosts.json", json.dumps(state, indent=1))

    def wait(self, signals: _Signals, log: Log) -> list[int]:
        """The exit codes, once all hosts have ended; the ones that do not end are killed."""
        passed, deadline = 0, None
        with _lines_of(self.folder / "host-0.log", log) as show:
            while None in (ended := [process.poll() for process in self.processes]):
                if signals.count > passed:
                    passed = signals.count
                    self._send(signal.SIGTERM if passed == 1 else signal.SIGKILL)
                failed = {host: code for host, code in enumerate(ended) if code}
                if deadline is None and failed:
                    host, code = next(iter(failed.items()))
                    limit = (self.job.heartbeat or HEARTBEAT) + (_ASKED if passed else _LOST)
                    log(
                        f"host {host} ended with {shell_code(code)}; the rest have {limit} s to end"
                    )
                    deadline = time.monotonic() + limit
                if deadline is not None and time.monotonic() > deadline:
                    self._send(signal.SIGKILL)
                show()
                time.sleep(_POLL)
            show()
        return [process.returncode for process in self.processes]

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


def _program() -> tuple[str, ...]:
    return (sys.executable, "-m", "caphuman_jax.cli")


def _wrapped(job: Job, host: int) -> Sequence[str]:
    return shlex.split(job.wrap.get(str(host), ""))


def _settings(job: Job, host: int, coordinator: str) -> dict[str, str]:
    """What a host's environment has in addition to this one's."""
    flags = f"--xla_force_host_platform_device_count={job.devices}"
    found = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **job.env}
    if job.cache:
        found["CAPHUMAN_CACHE"] = job.cache
    if job.verb in TOGETHER:
        found["CAPHUMAN_HEARTBEAT"] = str(job.heartbeat or HEARTBEAT)
        found["CAPHUMAN_HOSTS"] = str(job.nodes)
        if job.nodes > 1:
            found |= {
                "CAPHUMAN_COORDINATOR": coordinator,
                "CAPHUMAN_PROCESS_ID": str(host),
                "CAPHUMAN_PROCESS_COUNT": str(job.nodes),
            }
    return found


def _ended_with_parent() -> None:
    """In the child: SIGTERM if the launcher is killed, so that no host is left behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _lines_of(path: Path, log: Log) -> Generator[Callable[[], None]]:
    """A function that shows the lines that were added to a file since it was last called."""
    with open(path, errors="replace") as file:
        file.seek(0, os.SEEK_END)
        rest = ""

        def show():
            nonlocal rest
            *lines, rest = (rest + file.read()).split("\n")
            for line in lines:
                log(line)

        yield show


def _read_state(folder: Path) -> dict:
    try:
        return json.loads((folder / "hosts.json").read_text())
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{folder} has no hosts.json of a job; --logs names its folder"
        ) from error


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False
