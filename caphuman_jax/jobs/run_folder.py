"""The state of a run in its output folder: which units are done, and which process makes which.

A unit is claimed by a lock on one byte of a file. The operating system releases it when the process
ends for any reason, so there are no leases, clocks or stale claims. Locks hold between processes of
a machine and, on NFS and other cluster file systems with locks, between machines. A unit's record
is created by a hard link, which cannot replace an existing one: if two processes make the same unit
anyway, it is recorded once (and the pictures are bit-identical on machines of the same kind)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.io import atomic, files

_WAIT = 2.0  # seconds between two checks of what other processes still hold
_STATE = ".sample"
_RUN = Path(_STATE, "run.json")
INDEX, FAILED = "index.jsonl", "failed.jsonl"


class RunFolder:
    """An output folder and its units; one object for each process."""

    def __init__(self, out: Path, facts: dict, total: int, units: int, option: str = "--out"):
        """Start a run in `out`, or resume the one that exists, whose `facts` ({what: value}) must
        be the same; `option` names the folder in messages. Raises SettingError.
        """
        self.out, self.units, self._held, self._guard = out, units, set(), threading.RLock()
        self._must_lock = True
        self._state, self._records = out / _STATE, out / _STATE / "units"
        document = {
            "format": "caphuman_jax sample",
            "format_version": 1,
            "pictures": total,
            "units": units,
            "facts": facts,
        }
        run = out / _RUN
        try:
            if not run.exists() and out.exists():
                _refuse_strangers(out)
            self._records.mkdir(parents=True, exist_ok=True)
            atomic.create(run, json.dumps(document, indent=1).encode())
            begun = json.loads(run.read_text())
            (self._state / "claims").touch()
        except OSError as error:
            raise SettingError(
                f"the pictures cannot be written to {out} ({error}); choose another folder with "
                f"{option}"
            ) from error
        except ValueError as error:
            raise SettingError(
                f"{run} is damaged ({error}); choose another folder with {option}"
            ) from error
        for what, value in document["facts"].items():
            if begun["facts"].get(what) != value:
                raise SettingError(
                    f"{out} was started with other {what}; use the same to resume it, or choose "
                    f"another folder with {option}"
                )
        self._locks = open(
            self._state / "claims", "ab"
        )  # closing any handle of it in this process would free all locks

    @staticmethod
    def exists(out: Path) -> bool:
        """Whether a run was started in `out`."""
        return (out / _RUN).exists()

    def close(self) -> None:
        """Release all claims."""
        self._locks.close()

    def done(self, unit: int) -> bool:
        """Whether all pictures of a unit were made, or failed."""
        return self._record(unit).exists()

    def done_units(self) -> list[int]:
        """All units that are done."""
        return sorted(int(name.removesuffix(".json")) for name in files.names(str(self._records)))

    def claims(
        self, share: tuple[int, int] = (0, 1), stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[int | None]:
        """Yield units for this process until all are done.

        Args:
            share: (i, n): only the i-th of n parts of the units.
            stopped: whether to stop.

        Yields:
            A unit, or None after a short wait while other processes hold all that is left.
        """
        mine, last = (
            range(self.units * share[0] // share[1], self.units * (share[0] + 1) // share[1]),
            None,
        )
        self._must_lock = share[1] == 1
        while not stopped():
            with self._guard:
                done = set(self.done_units())
                open_ = [unit for unit in mine if unit not in done and unit not in self._held]
                unit = self._take(open_, last) if open_ else None
            if not open_:
                return
            if unit is None:
                yield None
                time.sleep(_WAIT)
            else:
                last = unit
                yield unit

    def commit(self, unit: int, record: dict) -> bool:
        """Record the unit as done and release its claim. Returns False if it was
        recorded before.
        """
        new = atomic.create(self._record(unit), json.dumps(record, ensure_ascii=False).encode())
        with self._guard:
            self._release(unit)
        return new

    def reopen_failed(self) -> None:
        """Mark units with failed pictures as not done; the files of their other pictures stay."""
        for unit in self.done_units():
            if self._lock(unit):
                record = self._read(unit)
                if record and record["failed"]:
                    self._record(unit).unlink(missing_ok=True)
                self._release(unit)

    def reopen_changed(self, sound: Callable[[dict], bool]) -> int:
        """Mark units as not done of which a picture is missing or was changed.

        Args:
            sound: whether the file of a picture's line is as it was made.

        Returns:
            How many units.
        """
        reopened = 0
        for unit in self.done_units():
            record = self._read(unit)
            if record is None or all(map(sound, record["made"])) or not self._lock(unit):
                continue
            self._record(unit).unlink(missing_ok=True)
            self._release(unit)
            reopened += 1
        return reopened

    def tidy(self) -> None:
        """Remove the incomplete files of killed processes, when all units are done."""
        for path in atomic.leftovers(self.out):
            if not path.name.startswith((f".{INDEX}", f".{FAILED}")):
                path.unlink(missing_ok=True)

    def counts(self) -> tuple[int, int]:
        """Pictures made and failed in the units that are done."""
        records = self._read_all(self.done_units())
        return sum(len(record["made"]) for record in records), sum(
            len(record["failed"]) for record in records
        )

    def write_index(self, order: Callable[[str], int]) -> tuple[int, int]:
        """Write index.jsonl of all pictures and failed.jsonl of all failures in the units that are
        done, in the order of the jobs. Returns how many there are of each.
        """
        while True:  # repeated, since another process may write it from fewer units meanwhile
            units = self.done_units()
            records = self._read_all(units)
            by_job = lambda line: (order(line["id"]), line["number"])
            made = sorted((line for record in records for line in record["made"]), key=by_job)
            failed = sorted((line for record in records for line in record["failed"]), key=by_job)
            _write_lines(self.out / INDEX, made)
            if failed or (self.out / FAILED).exists():
                _write_lines(self.out / FAILED, failed)
            if self.done_units() == units:
                return len(made), len(failed)

    def _take(self, open_: Sequence[int], last: int | None) -> int | None:
        """Claim one of the units: the next one, the first, or where others work the middle of the
        longest free part.
        """
        if last is not None and last + 1 in open_ and self._claim(last + 1):
            return last + 1
        free = [unit for unit in open_ if self._lock(unit)]
        for unit in free:
            self._release(unit)
        runs: list[list[int]] = []
        for unit in free:
            if runs and runs[-1][-1] == unit - 1:
                runs[-1].append(unit)
            else:
                runs.append([unit])
        longest = max(runs, key=len, default=[])
        others = len(free) < len(open_)
        for unit in [*longest[len(longest) // 2 if others else 0 :], *free]:
            if self._claim(unit):
                return unit
        return None

    def _claim(self, unit: int) -> bool:
        if not self._lock(unit):
            return False
        if self.done(unit):  # in the meantime
            self._release(unit)
            return False
        return True

    def _lock(self, unit: int) -> bool:
        if unit in self._held:
            return False
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if self._must_lock:
                raise CapHumanError(
                    f"{self.out} lies where files cannot be locked ({error}); give each process "
                    f"its part with --share I/N"
                ) from error
        self._held.add(unit)
        return True

    def _release(self, unit: int) -> None:
        self._held.discard(unit)
        with contextlib.suppress(OSError):
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, unit)

    def _record(self, unit: int) -> Path:
        return self._records / f"{unit:06d}.json"

    def _read_all(self, units: Sequence[int]) -> list[dict]:
        return [
            record for unit in units if (record := self._read(unit)) is not None
        ]  # another process may just have reopened one

    def _read(self, unit: int) -> dict | None:
        try:
            return json.loads(self._record(unit).read_text())
        except FileNotFoundError:
            return None


def _refuse_strangers(out: Path) -> None:
    if not out.is_dir():
        raise SettingError(f"{out} is not a directory; choose another with --out")
    for path in out.iterdir():
        if path.suffix in (".png", ".jpg", ".array_record"):
            raise SettingError(
                f"{out} holds {path.name} and no run of caphuman sample; choose another folder "
                f"with --out"
            )


def _write_lines(path: Path, lines: Sequence[dict]) -> None:
    files.write(
        str(path), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    )
