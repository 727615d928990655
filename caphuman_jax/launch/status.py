"""How a training run is doing, from the files of its work folder: on any machine that can read it,
in buckets too.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from typing import Any

from etils import epath

from caphuman_jax.errors import DataError
from caphuman_jax.io import buckets, json_reader

_SILENT = 600.0
"""Seconds without a line of metrics, or three times their interval, until a run counts as not
running.
"""


@dataclasses.dataclass(frozen=True)
class Status:
    """A run, or one stage of it.

    Attributes:
        folder: of the run or stage.
        state: "starting", "running", "not running" or "finished".
        step, steps: taken, and of the whole run; steps is None where the configuration does not
            say.
        loss, samples_per_second, mfu: of the last line; None where there is none.
        seconds_left: at the rate of the last line; None where that is not known.
        seconds_silent: since the last line of metrics.
        hosts, devices: of the last start.
        checkpoint: step of the newest one; None where there is none.
        starts: number of starts; the first does not count as a restart.
        wall_seconds: from the first start to the last line of metrics.
        goodput: share of that time in steps that count. Steps that were lost and taken again,
            compiling, evaluations and pauses do not.
    """

    folder: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    samples_per_second: float | None
    mfu: float | None
    seconds_left: float | None
    seconds_silent: float | None
    hosts: int | None
    devices: dict[str, int]
    checkpoint: int | None
    starts: int
    wall_seconds: float
    goodput: float | None


def read(workdir: str, now: float | None = None) -> list[Status]:
    """The stages of a run that have begun, in order; the run itself is the last.

    Args:
        workdir: a folder, or a URL of one in a bucket.
        now: seconds since 1970; None: the present.

    Raises:
        DataError: where there is no run, or a bucket cannot be read.
    """
    buckets.check(workdir)
    with buckets.problems(workdir):
        return _read(workdir, time.time() if now is None else now)


def _read(workdir: str, now: float) -> list[Status]:
    folder = epath.Path(workdir.removeprefix("file://"))
    try:
        document = buckets.read_bytes(folder / "config.json", json_reader.MAX_BYTES)
        config = json_reader.parse(document)["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        unreachable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if unreachable and buckets.is_url(workdir):
            raise
        raise DataError(
            f"{workdir} is not the work folder of a run: config.json cannot be read"
        ) from error
    return [
        _status(place, _steps(config, name), now)
        for name, place in (("autoencoder", folder / "autoencoder"), ("training", folder))
        if name == "training" or (place / "starts.jsonl").exists()
    ]


def lines(status: Status) -> list[str]:
    """What a person reads of it."""
    s = status
    of = f" of {s.steps:,} ({100 * s.step / s.steps:.1f} %)" if s.steps else ""
    found = [f"{s.folder}: {s.state}, step {s.step:,}{of}"]
    numbers = [] if s.loss is None else [f"loss {s.loss:.5g}"]
    if s.samples_per_second is not None:
        numbers.append(f"{s.samples_per_second:.4g} samples/s")
    numbers += [] if s.mfu is None else [f"MFU {100 * s.mfu:.1f} %"]
    if s.seconds_left is not None and s.state == "running":
        numbers.append(f"{_duration(s.seconds_left)} left")
    rows = [("numbers", ", ".join(numbers))] if numbers else []
    if s.hosts:
        devices = ", ".join(f"{count} × {kind}" for kind, count in s.devices.items())
        silent = (
            "" if s.seconds_silent is None else f"; last line {_duration(s.seconds_silent)} ago"
        )
        rows.append(("hosts", f"{s.hosts} ({devices}){silent}"))
    rows.append(("checkpoint", "none yet" if s.checkpoint is None else f"step {s.checkpoint:,}"))
    rows.append(("starts", f"{s.starts} ({max(s.starts - 1, 0)} restarts)"))
    if s.goodput is not None:
        share = f"{100 * s.goodput:.1f} % of {_duration(s.wall_seconds)} in steps that count"
        rows.append(("goodput", share))
    return found + [f"  {name:<11}{text}" for name, text in rows]


def _status(folder: epath.Path, steps: int | None, now: float) -> Status:
    starts, metrics = _json_lines(folder / "starts.jsonl"), _json_lines(folder / "metrics.jsonl")
    training = [line for line in metrics if "seconds" in line]
    last: dict[str, Any] = training[-1] if training else {}
    step = max((line.get("step", 0) for line in (*metrics, *starts)), default=0)
    saved = _checkpoints(folder / "checkpoints")
    began = _seconds(starts[0]["time"]) if starts else None
    seen = last.get("time")
    wall = max(seen - began, 0.0) if seen and began else 0.0
    silent = max(now - seen, 0.0) if seen else None
    interval = last.get("seconds", 0.0)
    finished = (folder / "model").exists() and steps is not None and step >= steps
    if finished:
        state = "finished"
    elif silent is None:
        state = "starting"
    else:
        state = "running" if silent < max(_SILENT, 3 * interval) else "not running"
    rate, before = last.get("samples_per_second"), _before(training, starts)
    left = None
    if last and steps and interval and last["step"] > before:
        left = (steps - step) * interval / (last["step"] - before)
    newest = starts[-1] if starts else {}
    return Status(
        folder=str(folder),
        state=state,
        step=step,
        steps=steps,
        loss=last.get("loss"),
        samples_per_second=rate,
        mfu=last.get("mfu"),
        seconds_left=left,
        seconds_silent=silent,
        hosts=newest.get("hosts"),
        devices=newest.get("devices", {}),
        checkpoint=saved[-1] if saved else None,
        starts=len(starts),
        wall_seconds=wall,
        goodput=min(sum(line["seconds"] for line in training) / wall, 1.0) if wall else None,
    )


def _before(training: list[dict], starts: list[dict]) -> int:
    """The step at which the last line's interval begins."""
    before = [line["step"] for line in training[-2:-1]]
    before += [line["step"] for line in starts if training and line["step"] < training[-1]["step"]]
    return max(before, default=0)


def _steps(config: dict, stage: str) -> int | None:
    found = config.get(stage)
    return found.get("steps") if isinstance(found, dict) else None


def _checkpoints(folder: epath.Path) -> list[int]:
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _json_lines(path: epath.Path) -> list[dict]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # half a line, of a run that was killed while writing it
    return [line for line in found if isinstance(line, dict)]


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
