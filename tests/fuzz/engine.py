"""One reader on one input, and what came of it; shrinking; a run without coverage guidance.

Limits hold in a process of its own (`worker`): time, memory, programs, files, connections.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import mutations
from fuzz.bombs import BOMBS

from caphuman_jax.errors import CapHumanError

CORPUS = Path(__file__).parent / "corpus"
REGRESSIONS = Path(__file__).parent / "regressions"
SECONDS = 5
"""Of the processor's time for an input, so that a busy machine makes no finding."""
STILL = 60
"""Seconds by the clock for an input, for readers that wait."""
MEMORY = 2**30
LARGEST = 1 << 18
_LONGEST_MESSAGE = 4000
_OFTEN = 0.05  # seconds between two looks at the processor's time


class Hang(BaseException):
    """An input took longer than SECONDS, or waited longer than STILL."""


class Forbidden(BaseException):
    """A reader started a program, opened a connection, or touched a file elsewhere."""


class Finding(Exception):
    """What a reader did that it may not do. place: by which findings are told apart."""

    def __init__(self, place: str, what: str):
        super().__init__(what)
        self.place = place


def outcome(run: Callable[[bytes], object], data: bytes) -> str:
    """In a few words what a reader made of an input: the same for inputs of one kind.

    Raises:
        Finding: neither a value nor an error of the project.
    """
    try:
        value = run(data)
    except CapHumanError as error:
        _check_causes(error)
        text = str(error)
        if not text.strip() or len(text) > _LONGEST_MESSAGE + 4 * len(data):
            raise Finding("message", f"a message of {len(text)} characters") from error
        return f"{type(error).__name__}: {_kind_of(text)}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Finding(_place(error), f"{type(error).__name__}: {error}"[:300]) from error
    return f"value: {_kind_of(value) if isinstance(value, str) else type(value).__name__}"


def _check_causes(error: BaseException) -> None:
    """An error of the project that hides a lack of memory is a finding, too."""
    seen, at = 0, error.__cause__ or error.__context__
    while at is not None and seen < 10:
        if isinstance(at, MemoryError):
            raise Finding(_place(at), "more memory than it may take") from error
        at, seen = at.__cause__ or at.__context__, seen + 1


def _place(error: BaseException) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "caphuman_jax/" in frame.filename or "data_pipeline/" in frame.filename
    ]
    last = frames[-1] if frames else None
    where = f"{Path(last.filename).name}:{last.name}" if last else "elsewhere"
    return f"{type(error).__name__} in {where}"


def _kind_of(text: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.,]+|/\S+", "_", text)[:120]


def seeds(name: str) -> list[bytes]:
    """The corpus of a reader, in the order of the names."""
    return [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]


def regressions() -> dict[str, Callable[[], bytes]]:
    """READER/NAME → an input that once was a finding."""
    kept = {"/".join(path.parts[-2:]): path.read_bytes for path in sorted(REGRESSIONS.glob("*/*"))}
    return kept | BOMBS


def inputs(reader, count: int, seed: int = 0) -> Iterator[bytes]:
    """Mutated inputs: some of the corpus, some of inputs mutated before. Seeded."""
    rng, pool = random.Random(f"{reader.name} {seed}"), seeds(reader.name)
    yield from pool[:count]
    kept = len(pool)
    for _ in range(count - kept):
        base = rng.choice(pool)
        try:
            data = reader.mutate(rng, base)[:LARGEST]
        except Exception:  # noqa: BLE001 - such as a number that JSON cannot write
            data = mutations.any_bytes(rng, base)
        yield data
        if rng.random() < 0.05:
            pool.append(data)
            if len(pool) > 500:
                del pool[rng.randrange(kept, len(pool))]


def shrink(run: Callable[[bytes], object], data: bytes, place: str, tries: int = 400) -> bytes:
    """A shorter input with the same finding."""

    def same(candidate: bytes) -> bool:
        try:
            outcome(run, candidate)
        except Finding as found:
            return found.place == place
        return False

    step = max(1, len(data) // 2)
    while step and tries > 0:
        at, smaller = 0, False
        while at < len(data) and tries > 0:
            candidate = data[:at] + data[at + step :]
            tries -= 1
            if same(candidate):
                data, smaller = candidate, True
            else:
                at += step
        if not smaller or step > 1:
            step = step // 2 if step > 1 else (1 if smaller else 0)
    return data


def keep(name: str, data: bytes) -> Path:
    """Write an input among the regressions."""
    path = REGRESSIONS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def limited_time(seconds: float = SECONDS, still: float = STILL) -> Iterator[None]:
    """Raises Hang, where the interpreter gets to run, after `seconds` of the processor's time in
    this thread, the main one, or `still` by the clock. Other threads' work does not count: a test
    before this one may have left some.
    """
    limits = {
        signal.SIGPROF: f"more than {seconds} s of the processor's time",
        signal.SIGALRM: f"more than {still} s by the clock",
    }
    over, main = threading.Event(), threading.get_ident()
    clock = time.pthread_getcpuclockid(main)
    end = time.clock_gettime(clock) + seconds

    def late(number: int, frame: object) -> None:
        if not over.is_set():  # else a signal that was on its way
            raise Hang(limits[signal.Signals(number)])

    def watch() -> None:
        until = end
        while not over.wait(_OFTEN):
            if time.clock_gettime(clock) > until:  # once more later: the first may be lost
                signal.pthread_kill(main, signal.SIGPROF)
                until += seconds

    before = {number: signal.signal(number, late) for number in limits}
    watcher = threading.Thread(target=watch, daemon=True)
    try:
        signal.setitimer(signal.ITIMER_REAL, still)
        watcher.start()
        yield
    finally:
        over.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def limit_memory() -> None:
    """No more than MEMORY above what the process has now (Linux)."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (_held() + MEMORY, _held() + MEMORY))


@contextmanager
def limited_memory(more: int = MEMORY) -> Iterator[None]:
    """The same for a while; more: bytes. Without a limit where the system has no such figures."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_held() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _held() -> int:
    """Bytes of data that the process has."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[5]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Refuses programs, connections and files outside of `scratch` while `on`."""

    _PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
                 "os.spawn", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen")  # fmt: skip
    _FILES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
              "os.chmod", "os.truncate", "shutil.rmtree")  # fmt: skip

    def __init__(self, scratch: Path):
        self.on = False
        root = str(Path(__file__).parents[2])
        self._may_read = (str(scratch), root, sys.prefix, sys.base_prefix, "/usr/", "/lib",
                          "/proc/", "/sys/", "/dev/null", *filter(None, sys.path))  # fmt: skip
        self._may_write = (str(scratch), "/dev/null", os.devnull)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int):
                return
            path = os.path.abspath(os.fsdecode(path))
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if path.endswith((".pyc", "__pycache__")):
                return
            if not path.startswith(self._may_write if writes else self._may_read):
                raise Forbidden(f"{'writes' if writes else 'reads'} {path}")
        elif event in self._PROGRAMS or event in self._FILES:
            raise Forbidden(f"{event}{args!r}"[:200])
