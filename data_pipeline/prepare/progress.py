"""Reports progress while photos are prepared, read from the files that workers finish."""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter

from caphuman_jax.io import files
from data_pipeline.prepare import plan, workdir

_LOCAL, _BUCKET = 5.0, 30.0  # seconds between updates


class Progress:
    """Lines about a job; on a terminal, one line that is updated."""

    def __init__(self, job: workdir.Job, listing: workdir.Listing, stream=None):
        self._job, self._listing, self._stream = job, listing, stream or sys.stderr
        self._done: set[int] = set()
        self._photos = self._kept = 0
        self._dropped: Counter = Counter()
        self._last, self._shown = "", 0.0
        self.interval = _LOCAL if files.is_local(job.folder) else _BUCKET
        self._update()
        self._started, self._before = time.monotonic(), self._photos
        if self._photos:
            self.say(f"resuming: {self._photos:,} of {listing.photos:,} photos are done")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def show(self) -> None:
        """Update the progress if the interval has passed."""
        if time.monotonic() - self._shown < self.interval:
            return
        self._update()
        text = self._measuring() if self._photos < self._listing.photos else self._writing()
        self._shown = time.monotonic()
        if text != self._last:
            if self._stream.isatty():
                self._clear()
                print(text, end="", file=self._stream, flush=True)
            else:
                print(text, file=self._stream, flush=True)
            self._last = text

    def end(self) -> None:
        """Clear the terminal's line for what comes next."""
        self._clear()

    def _clear(self) -> None:
        if self._last and self._stream.isatty():
            print("\r\033[K", end="", file=self._stream)
            self._last = ""

    def _update(self) -> None:
        for number in workdir.measured_chunks(self._job.folder):
            if number not in self._done:
                self._done.add(number)
                summary = workdir.read_summary(self._job.folder, number)
                self._kept += summary["kept"]
                self._dropped.update(summary["dropped"])
        self._photos = self._kept + self._dropped.total()

    def _measuring(self) -> str:
        seconds, new = time.monotonic() - self._started, self._photos - self._before
        text = f"{self._photos:,} of {self._listing.photos:,} photos"
        if not new:
            return f"{text}, starting"
        left = datetime.timedelta(
            seconds=round((self._listing.photos - self._photos) * seconds / new)
        )
        return (
            f"{text}, {new / seconds:.1f}/s, {self._kept:,} kept{dropped_text(self._dropped)}; "
            f"{left} left"
        )

    def _writing(self) -> str:
        planned = plan.read_plan(self._job)
        if planned is None:
            return f"{self._photos:,} photos measured; looking for duplicates and the same people"
        written = len(files.names(self._job.path("shards")))
        return f"{planned['kept']:,} records; files written: {written} of {len(planned['shards'])}"


def dropped_text(dropped: dict[str, int]) -> str:
    """The most common reasons, for a line."""
    most = Counter(dropped).most_common(4)
    return (
        f", {sum(dropped.values()):,} dropped "
        f"({', '.join(f'{reason} {number:,}' for reason, number in most)})"
        if most
        else ""
    )
