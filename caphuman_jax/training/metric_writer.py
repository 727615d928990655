"""What a person sees of a run: the progress line, metrics.jsonl, TensorBoard and W&B."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caphuman_jax.errors import SettingError
from caphuman_jax.io import atomic
from caphuman_jax.io.images import write_png
from caphuman_jax.runtime.device_specs import peak_flops


class MetricWriter:
    """Collects the metrics of steps and writes them; on every host but the first it does nothing.

    Args of the constructor:
        workdir: the run's folder.
        batch_size: pictures of a step.
        steps: of the whole run.
        first: the step that the run starts or resumes at.
        flops: of a step over all devices, None where unknown.
        tensorboard: write event files.
        wandb: project of Weights & Biases, "" for none.
        settings: shown by W&B.
        log: takes the lines for people.

    Metrics are scalars, and vectors NAME of sums with NAME_count, whose quotients are written.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        batch_size: int,
        steps: int,
        first: int = 0,
        flops: float | None = None,
        tensorboard: bool = True,
        wandb: str = "",
        settings: Mapping[str, Any] | None = None,
        log: Callable[[str], None] = print,
    ):
        self.batch_size, self.steps, self.flops = batch_size, steps, flops
        self.log, self.workdir = log, Path(workdir)
        self.writers = []
        if jax.process_index() == 0:
            check_writers(tensorboard, wandb)
            self.writers.append(_Lines(self.workdir / "metrics.jsonl", first))
            if tensorboard:
                self.writers.append(_TensorBoard(self.workdir / "tensorboard", first))
            if wandb:
                self.writers.append(_WandB(self.workdir, wandb, settings))
        self._begin(first)

    def _begin(self, step: int) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._count, self._from, self._waited, self._since = 0, step, 0.0, time.perf_counter()

    def add_data_wait(self, seconds: float) -> None:
        """A step waited that long for its data."""
        self._waited += seconds

    def exclude_seconds(self, seconds: float) -> None:
        """Something else took that long (evaluating, saving): it does not count for the speed."""
        self._since += seconds

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """The metrics of one step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0) + np.asarray(value, np.float64)
        self._count += 1

    def write(self, step: int) -> dict[str, float]:
        """The means since the last time, and the line; `step` steps were taken. Returns this host's
        speed.
        """
        if not self._count:
            return {}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        means = quotients(self._sums, self._count)
        speed = {
            "seconds": seconds,
            "samples_per_second": self.batch_size * (step - self._from) / seconds,
            "data_wait": self._waited / seconds,
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if self.flops and peak:
            speed["mfu"] = self.flops * (step - self._from) / seconds / (peak * jax.device_count())
        if self.writers:
            self._write(step, means | speed)
            self.log(progress_line(step, self.steps, means, speed, self.batch_size))
        self._begin(step)
        return speed

    def write_evaluation(
        self,
        step: int,
        name: str,
        metrics: Mapping[str, float | list],
        images: Mapping[str, np.ndarray],
    ) -> None:
        """What an evaluator found: its numbers as NAME/METRIC and on a line of their own, its
        images (H, W, 3) uint8 as WORKDIR/pictures/IMAGE-STEP.png and in TensorBoard and W&B.
        """
        if not self.writers:
            return
        if metrics:
            self._write(step, {f"{name}/{metric}": value for metric, value in metrics.items()})
            numbers = {m: value for m, value in metrics.items() if isinstance(value, float)}
            self.log(f"step {step} {name}: " + " ".join(f"{m} {v:.4g}" for m, v in numbers.items()))
        folder = self.workdir / "pictures"
        for image, pixels in images.items():
            folder.mkdir(exist_ok=True)
            write_png(folder / f"{image}-{step:08d}.png", pixels)
        for writer in self.writers:
            writer.images(step, images)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        for writer in self.writers:
            writer.scalars(step, values)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def check_writers(tensorboard: bool, wandb: str) -> None:
    """Raises SettingError where what is asked for is not installed."""
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise SettingError(
            "for TensorBoard's files install tensorboardX (pip install '.[train]'), "
            "or leave them out with --config.loop.tensorboard=false"
        )
    if wandb and importlib.util.find_spec("wandb") is None:
        raise SettingError(f"loop.wandb = {wandb!r} needs W&B: pip install wandb")


def quotients(sums: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    """Means over `count` steps: scalars as float; vectors that have a NAME_count as lists of sum /
    count, None where nothing was counted.
    """
    means: dict[str, Any] = {}
    for name, value in sums.items():
        counts = sums.get(f"{name}_count")
        if counts is not None:
            means[name] = [
                float(total / n) if n else None
                for total, n in zip(np.ravel(value), np.ravel(counts))
            ]
        elif np.ndim(value) == 0:
            means[name] = float(value) / count
    return means


def progress_line(
    step: int, steps: int, means: Mapping[str, Any], speed: Mapping[str, float], batch_size: int
) -> str:
    """One line for people."""
    parts = [f"step {step}/{steps}", f"loss {means.get('loss', math.nan):.5g}"]
    parts += [f"gradient {means['grad_norm']:.3g}"] if "grad_norm" in means else []
    parts.append(f"{speed['samples_per_second']:.4g} samples/s")
    parts += [f"MFU {100 * speed['mfu']:.1f} %"] if "mfu" in speed else []
    parts.append(f"waiting for data {100 * speed['data_wait']:.1f} %")
    if speed["samples_per_second"] > 0 and step < steps:
        left = round((steps - step) * batch_size / speed["samples_per_second"])
        parts.append(f"{datetime.timedelta(seconds=left)} left")
    return " · ".join(parts)


class _Lines:
    """metrics.jsonl: one JSON object a line. Lines of steps that a resumed run takes again are
    dropped.
    """

    def __init__(self, path: Path, first: int):
        if path.exists():
            kept = [
                line
                for line in path.read_text().splitlines()
                if (step := _step_of(line)) is not None and step <= first
            ]
            atomic.write_text(path, "".join(line + "\n" for line in kept))
        self.file = open(path, "a")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: _number(value) for name, value in values.items()}
        # `caphuman status` reads when steps were taken, and in what time.
        stamp = {"time": round(time.time(), 3)} if "seconds" in values else {}
        self.file.write(json.dumps({"step": step, **stamp, **numbers}) + "\n")
        self.file.flush()

    def images(self, step: int, images) -> None:
        pass

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None  # half a line, of a run that was killed while writing it


def _number(value):
    if isinstance(value, list):
        return [_number(v) for v in value]
    return value if value is None or math.isfinite(value) else str(value)


class _TensorBoard:
    """Event files by tensorboardX, which needs neither TensorFlow nor TensorBoard."""

    def __init__(self, folder: Path, first: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(
            str(folder), purge_step=first + 1 if first else None, flush_secs=30
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in _flat(values).items():
            self.writer.add_scalar(name, value, step)

    def images(self, step: int, images) -> None:
        for name, image in images.items():
            self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """Weights & Biases, where it is installed and a project is named."""

    def __init__(self, workdir: Path, project: str, settings: Mapping[str, Any] | None):
        import wandb

        self.wandb = wandb
        # The same work folder resumes the same run.
        mark = workdir / "wandb_run"
        if not mark.exists():
            mark.write_text(wandb.util.generate_id())
        self.run = wandb.init(
            project=project,
            id=mark.read_text().strip(),
            resume="allow",
            dir=str(workdir),
            config=dict(settings or {}),
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log(_flat(values), step=step)

    def images(self, step: int, images) -> None:
        self.run.log({name: self.wandb.Image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


def _flat(values: Mapping[str, Any]) -> dict[str, float]:
    """Lists as NAME/0, NAME/1 …, without what is None."""
    flat = {}
    for name, value in values.items():
        entries = (
            {f"{name}/{i}": v for i, v in enumerate(value)}
            if isinstance(value, list)
            else {name: value}
        )
        flat |= {key: v for key, v in entries.items() if v is not None}
    return flat
