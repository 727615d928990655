"""What a command says while it runs: notices, progress and times on stderr; and checks of paths."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.runtime.progress import progress_bar

_STAGES = {
    "photo": "analyzing the photo",
    "head photo": "analyzing the head photo",
    "hints": "rendering the head",
    "compile": "preparing the sampler (compiled once for this size and step count)",
}
_LARGEST_BATCH = 4096  # pictures on one device


def quiet_libraries() -> None:
    """Silence what XLA and FFmpeg print by themselves. Call it before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C and SIGTERM where nothing has to be saved say how to resume; where something has,
    `runtime.preemption` handles them meanwhile.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = ("nothing was left to save; rerun the same command to resume",)
        raise


@contextlib.contextmanager
def keeping(paths: Sequence[Path], folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM say how many pictures are kept: `paths` grows with each that is made."""
    try:
        yield
    except KeyboardInterrupt as stop:
        what = "1 picture is" if len(paths) == 1 else f"{len(paths) or 'no'} pictures are"
        stop.args = (f"{what} in {folder}",)
        raise


def check_writable(out: Path) -> None:
    """Raises SettingError if a folder cannot be made or written to. To be called before
    the work.
    """
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK) or _refuses_files(there):
        raise SettingError(
            f"pictures cannot be written to {out}: {there} is not a directory that can be written "
            "to; choose another with --out"
        )


def check_there(paths: Iterable[Path], folder: Path) -> None:
    """Raises CapHumanError if files that were written are gone. To be called after the work."""
    paths = list(paths)
    gone = sum(not path.is_file() for path in paths)
    if gone:
        raise CapHumanError(
            f"{gone} of {len(paths)} files are no longer in {folder}: something removed them while "
            "the others were made; run the same command again"
        )


def check_batch(batch: int | None) -> None:
    """Raises SettingError for a --batch that no device can hold."""
    if batch is not None and not 1 <= batch <= _LARGEST_BATCH:
        raise SettingError(f"--batch must lie between 1 and {_LARGEST_BATCH}, not {batch}")


@contextlib.contextmanager
def notices(once: bool = False) -> Iterator[None]:
    """Print the library's warnings as lines on stderr; with `once`, each only once."""
    logger, handler = logging.getLogger("caphuman_jax"), _Notices(once)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class ProgressReporter:
    """Reports the pipeline's stages (`conditioning.Progress`): a line and its time for each, and a
    bar over the pictures.
    """

    def __init__(self):
        self._bar: Any = None  # tqdm's
        self._stage: _Stage | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `conditioning.Progress`."""
        if stage == "pictures":
            if self._bar is None:
                self._bar = progress_bar(total=total, unit="picture", desc="sampling")
            self._bar.update(done - self._bar.n)
            if done == total:
                self._bar.close()
        elif done == 0:
            self._end(False)  # of a photo that was left out
            self._stage = _Stage(_STAGES[stage])
        else:
            self._end(True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._end(kind is None)
        if self._bar is not None:
            self._bar.close()

    def _end(self, completed: bool) -> None:
        if self._stage is not None:
            self._stage.end(completed)
        self._stage = None


class _Stage:
    """A line for a stage of unknown length; on a terminal it counts the seconds."""

    def __init__(self, text: str):
        self.text, self.started, self.over = text, time.perf_counter(), threading.Event()
        self.live = sys.stderr.isatty()
        self.clock = threading.Thread(target=self._run, daemon=True)
        if self.live:
            self.clock.start()

    def end(self, completed: bool) -> None:
        self.over.set()
        if self.live:
            self.clock.join()
            sys.stderr.write("\r\x1b[K")
        if completed:
            print(f"{self.text}: {time.perf_counter() - self.started:.1f} s", file=sys.stderr)

    def _run(self) -> None:
        while True:
            sys.stderr.write(f"\r\x1b[K{self.text} … {time.perf_counter() - self.started:.0f} s")
            sys.stderr.flush()
            if self.over.wait(1):
                return


class _Notices(logging.Handler):
    def __init__(self, once: bool):
        super().__init__(logging.WARNING)
        self._seen: set[str] | None = set() if once else None

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        message = record.getMessage()
        if self._seen is not None:
            if message in self._seen:
                return
            self._seen.add(message)
        tqdm.write(f"caphuman: notice: {message}", file=sys.stderr)


def _refuses_files(folder: Path) -> bool:
    """Whether a file cannot be made in a folder whose permissions allow it, as in /proc."""
    probe = folder / f".caphuman-{os.getpid()}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return True
    return False
