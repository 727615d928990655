"""Commands in forks of this process, and the small disks that they write to."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import injection
from injection import Fault
from verbs import Verb

HERE = Path(__file__).parent
_LONGEST = 600.0  # seconds of one command: `train mini` takes minutes on a busy machine


@dataclasses.dataclass
class Outcome:
    """How a command ended."""

    code: int
    error: str
    struck: bool
    events: int


def start(verb: Verb, place: Path, fault: Fault | None, log: str = "log") -> int:
    """Start the command in a fork; its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.chdir(place)
        out = os.open(place / "notes" / f"{log}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
            os.dup2(target, number)
        sys.argv = ["caphuman", *verb.command.split()]
        os.environ.pop(injection.VARIABLE, None)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE / "hook"), before)))
        if fault is not None:
            injection.install(dataclasses.replace(fault, root=os.getpid()))
        from caphuman_jax.cli import app

        code = app.main()
        names = [name for name in sys.modules if not name.startswith("__")]
        (place / "notes" / "modules.json").write_text(json.dumps(sorted(names)))
        leave_as_python_does()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001 - a test of what it prints
        traceback.print_exc()
        code = 98
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def leave_as_python_does() -> None:
    """Wait for threads and call what is registered for the exit, as an interpreter that ends."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()


def finish(process: int, place: Path, during, log: str = "log") -> Outcome:
    """Wait for a command, and for the processes that it started."""
    if during is not None:
        during(process)
    deadline = time.monotonic() + _LONGEST
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            status = 124 << 8
            break
        time.sleep(0.01)
    notes = place / "notes"
    with contextlib.suppress(OSError):
        others = {int(n) for n in (notes / "processes").read_text().split()} - {process}
        while any(Path(f"/proc/{n}").exists() for n in others) and time.monotonic() < deadline:
            time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    count = (notes / "count").stat().st_size if (notes / "count").exists() else 0
    text = (
        (notes / f"{log}.txt").read_text(errors="replace")
        if (notes / f"{log}.txt").exists()
        else ""
    )
    return Outcome(code, text.strip(), (notes / "struck").exists(), count)


def wait_for_events(place: Path, process: int, number: int = 1) -> None:
    """Until the command has written something, or has ended."""
    path, deadline = place / "notes" / "count", time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size >= number:
            return
        if has_ended(process):
            return
        time.sleep(0.002)


def has_ended(process: int) -> bool:
    """Whether a process of ours has ended; nobody has waited for it yet."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def run_here(work, log: Path) -> None:
    """Call a function in a fork, so that this process starts no threads. Raises SystemExit."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 1
        try:
            out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - reported by the parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit(f"{log.read_text()[-3000:]}")


def mount(folder: Path, options: str) -> bool:
    """A tmpfs at `folder`; False where this process may not mount."""
    return _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))


def remount(folder: Path, options: str) -> None:
    _mount("-o", f"remount,{options}", str(folder))


def unmount(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(*arguments: str) -> bool:
    try:
        return not subprocess.run(["mount", *arguments], capture_output=True).returncode
    except OSError:
        return False


def import_everything(modules: Path) -> None:
    """Import what a command has imported, so that later forks have it."""
    for name in json.loads(modules.read_text()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
