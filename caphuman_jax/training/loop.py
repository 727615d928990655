"""The training loop, the same from one CPU core to many hosts and for every recipe.

Every iteration runs in this order: evaluate, checkpoint (with the position in the data), fetch,
step. Metrics are read `STEPS_IN_FLIGHT` steps late, so the host never waits for the devices.

To follow one step, read, in this order: a configuration such as `configs/sd15.py` (every number),
its recipe `recipes/sd15.py` (networks, records, what the step is made of), this file,
`step.py` (state, gradients, update), `batches.py` (rows of records → `Batch`), `objective.py`
(noise and loss).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from caphuman_jax.errors import INTERRUPTED, SettingError
from caphuman_jax.runtime import compiler, profiling, sharding
from caphuman_jax.runtime.preemption import Preemption
from caphuman_jax.runtime.watchdog import Watchdog
from caphuman_jax.training import bad_batch, compiled_step, room, run_folder
from caphuman_jax.training.checkpoints import Checkpoints
from caphuman_jax.training.feed import Feed
from caphuman_jax.training.host_log import HostLog
from caphuman_jax.training.metric_writer import MetricWriter, quotients
from caphuman_jax.training.recipe import Log, Recipe, RowSource
from caphuman_jax.training.step import TrainState

STEPS_IN_FLIGHT = 2
"""Steps handed to the devices before the metrics of the first of them are read."""

NAN_EXIT_CODE = 1
"""Exit code when a metric was infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What the loop does around the steps; nothing here changes the numbers of a run.

    Attributes:
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints, 0 for never; the last step is always saved.
        keep: how many of the newest checkpoints stay.
        best: "EVALUATOR/METRIC" whose best checkpoint stays too, "" for none.
        best_highest: whether the highest value is the best, else the lowest.
        sharding: "replicated", "zero" or "fsdp".
        fsdp: devices that share a copy of what is split, 0 for all of a slice.
        tensorboard: write event files.
        wandb: project of Weights & Biases, "" for none.
        hang_seconds: a host whose step takes longer ends with 142, so that the job restarts; 0 for
            never. The first step may take six times as long, and each step ten times as long as the
            slowest before it. Evaluating and saving do not count.
    """

    log_every: int = 100
    save_every: int = 2000
    keep: int = 2
    best: str = ""
    best_highest: bool = False
    sharding: str = "replicated"
    fsdp: int = 1
    tensorboard: bool = True
    wandb: str = ""
    hang_seconds: float = 600.0

    def __post_init__(self):
        if self.sharding not in sharding.MODES:
            raise SettingError(
                f"loop.sharding is {self.sharding!r}; there are {', '.join(sharding.MODES)}"
            )
        if self.hang_seconds < 0:
            raise SettingError("loop.hang_seconds is at least 0")
        if self.log_every < 1 or self.keep < 1 or self.save_every < 0:
            raise SettingError(
                "loop.log_every and loop.keep are at least 1, loop.save_every at least 0"
            )


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        state: at the end, on the mesh; None after a NaN.
        step: the number of steps taken.
        exit_code: 0, or why the run ended early.
    """

    state: TrainState | None
    step: int
    exit_code: int


def run(
    recipe: Recipe,
    source: RowSource | None,
    cfg: LoopConfig,
    workdir: str | Path,
    mesh,
    *,
    minutes: float | None = None,
    profile: int = 0,
    config: dict | None = None,
    begin: Callable[[], None] = lambda: None,
    log: Log = print,
) -> Result:
    """Trains up to the recipe's steps, from the newest checkpoint of `workdir` or from the start.

    Args:
        recipe: what is trained.
        source: where rows come from; None where steps sample their own batches.
        cfg: what happens around the steps.
        workdir: for checkpoints and metrics; all hosts share it.
        mesh: all devices.
        minutes: save and stop after that long.
        profile: how many steps to write a trace of.
        config: shown by W&B.
        begin: called when nothing can refuse the start any more, before anything is written.
        log: takes the lines for people, on the first host.

    Raises:
        DataError: for a `workdir` that holds another run, or data that cannot be read.
    """
    workdir = Path(workdir)
    log = log if jax.process_index() == 0 else lambda line: None
    run_folder.prepare(workdir)
    folder = run_folder.checkpoint_folder(workdir)
    checkpoints = Checkpoints(
        folder,
        cfg.keep,
        cfg.best or None,
        highest=cfg.best_highest,
    )
    try:
        with Preemption(minutes) as stop:
            loop = _Loop(recipe, cfg, mesh, checkpoints, workdir, log)
            try:
                loop.init(source, config, begin)
                result = loop.run_steps(stop, profile)
            finally:
                loop.close()
    except BaseException:
        # Closing waits for the other hosts, which do not know yet; `runtime.distributed.leave`
        # ends this process without them.
        if jax.process_count() > 1:
            raise
        checkpoints.close()
        run_folder.remove_empty(folder, workdir)
        raise
    checkpoints.close()
    return result


class _Loop:
    """One run in one process."""

    def __init__(
        self, recipe: Recipe, cfg: LoopConfig, mesh, checkpoints: Checkpoints, workdir: Path, log
    ):
        self.recipe, self.cfg, self.mesh = recipe, cfg, mesh
        self.checkpoints, self.workdir, self.log = checkpoints, workdir, log
        self.pending: collections.deque = collections.deque()
        self.eval_metrics: dict[int, dict[str, float]] = {}
        self.feed: Feed | None = None
        self.writer: MetricWriter | None = None
        self.host_log: HostLog | None = None

    def init(
        self, source: RowSource | None, config: dict | None, begin: Callable[[], None]
    ) -> None:
        """The state restored or initialized, the step compiled, the first batch on its way."""
        recipe, mode = self.recipe, self.cfg.sharding
        shapes = recipe.abstract_state()
        shardings = sharding.state_shardings(self.mesh, shapes, mode)
        identity = run_folder.identity(recipe)
        room.check_disk(self.workdir, room.checkpoint_bytes(shapes))
        restored = self.checkpoints.restore(shapes, shardings, identity, self.log)
        if restored is None:
            self.state = compiled_step.init_sharded_state(recipe, shardings)
            self.step = self.samples = 0
        else:
            self.state, content = compiler.laid_out(restored[0]), restored[1]
            self.step, self.samples = content["step"], content["samples"]
            self.log(f"resumed at step {self.step}")
        self.first_step = self.step
        self.last_saved = None if restored is None else self.step
        frozen_shardings = sharding.frozen_shardings(self.mesh, recipe.frozen, mode)
        self.frozen = compiler.laid_out(sharding.place(recipe.frozen, frozen_shardings))
        self.feed = Feed(source, self.samples, self.mesh)
        if self.step >= recipe.steps:
            self.begin(begin)
            return
        self.log(
            f"{len(jax.devices())} × {jax.devices()[0].device_kind}, {mode}; compiling the step"
        )
        began = time.perf_counter()
        rows = self.feed.peek()
        self.compiled = compiled_step.compile_step(recipe, self.mesh, mode, self.frozen, rows)
        room.check_memory(self.compiled)
        self.log(f"step compiled in {time.perf_counter() - began:.1f} s")
        self.begin(begin)
        self.writer = MetricWriter(
            self.workdir,
            batch_size=recipe.batch_size,
            steps=recipe.steps,
            first=self.step,
            flops=recipe.flops or compiled_step.count_flops(recipe, self.mesh, self.frozen, rows),
            tensorboard=self.cfg.tensorboard,
            wandb=self.cfg.wandb,
            settings=config,
            log=self.log,
        )
        self.host_log = HostLog(self.workdir)
        self.host_log.write(self.step, f"starts; {len(jax.local_devices())} devices")
        if jax.process_index() == 0:
            run_folder.log_run_start(self.workdir, self.step)

    def begin(self, begin: Callable[[], None]) -> None:
        """Nothing can refuse the start any more: the folder becomes that of this run."""
        begin()
        run_folder.keep_settings(self.workdir, self.recipe)

    @property
    def metric_writer(self) -> MetricWriter:
        """There is one as soon as there are steps to take."""
        assert self.writer is not None, "init comes first"
        return self.writer

    def run_steps(self, stop: Preemption, profile: int) -> Result:
        """Steps until the end, or until a signal or the time asks to stop."""
        steps, first = self.recipe.steps, self.first_step
        trace_from = first + 10 if steps > first + 10 + profile else first + 1
        mark = self.workdir / profiling.MARK
        trace = profiling.Trace(self.workdir / "profile", mark, trace_from, profile, self.drain)
        stopping = False
        try:
            with Watchdog(self.cfg.hang_seconds, " (loop.hang_seconds)") as watchdog:
                while True:
                    stopping = self.step < steps and stop.reached(self.step)
                    with watchdog.paused():
                        if not stopping:
                            self.evaluate()
                        last = self.step == steps or stopping
                        best = self.cfg.best in self.eval_metrics.get(self.step, ())
                        if last or best or self.due(self.cfg.save_every):
                            self.save()
                    if self.step >= steps or stopping:
                        break
                    trace.at(self.step)
                    rows = self.fetch()
                    self.take_step(rows)
                    if self.step % self.cfg.log_every == 0 or self.step in (first + 1, steps):
                        self.checkpoints.check()
                        self.drain()
                        self.report(trace)
                    watchdog.step()
            self.checkpoints.wait()
        except NotFinite as error:
            self.log(str(error))
            return Result(None, error.step, NAN_EXIT_CODE)
        finally:
            trace.close()
        if stop.exit_code or stopping:
            why = "interrupted" if stop.exit_code == INTERRUPTED else "asked to stop"
            self.log(
                f"{why}: saved at step {self.step} of {steps}; rerun the same command to resume"
            )
        return Result(self.state, self.step, stop.exit_code)

    def report(self, trace: profiling.Trace) -> None:
        """Writes the metrics since the last time."""
        speed = self.metric_writer.write(self.step)
        assert self.host_log is not None, "init comes first"
        told = ", ".join(f"{name} {value:.4g}" for name, value in speed.items())
        self.host_log.write(self.step, told)
        trace.look()

    def due(self, every: int) -> bool:
        """Whether something is due before the next step that happens every so often and at the end;
        nothing is at the very step that a run starts or resumes at.
        """
        new = self.step != self.first_step
        return bool(every) and new and (self.step % every == 0 or self.step == self.recipe.steps)

    def evaluate(self) -> None:
        """Runs the evaluators that are due, on the averaged parameters."""
        due = {n: e for n, e in self.recipe.evaluators.items() if self.due(e.every)}
        if not due:
            return
        self.drain()
        began = time.perf_counter()
        metrics: dict[str, Any] = {}
        for name, evaluator in due.items():
            found = evaluator.evaluate(self.state.eval_params, self.frozen, self.step)
            numbers = _of_first_host(quotients(found.metrics, 1))
            metrics |= {f"{name}/{metric}": value for metric, value in numbers.items()}
            self.metric_writer.write_evaluation(self.step, name, numbers, found.images)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self.eval_metrics = {self.step: numbers}
        self.metric_writer.exclude_seconds(time.perf_counter() - began)

    def save(self) -> None:
        """Saves the state, once every step before it is known to be finite."""
        self.drain()
        if self.step == self.last_saved:
            return
        began = time.perf_counter()
        self.checkpoints.save(
            self.step,
            self.state,
            run_folder.identity(self.recipe) | {"samples": self.samples},
            self.eval_metrics.get(self.step),
        )
        self.eval_metrics, self.last_saved = {}, self.step
        self.metric_writer.exclude_seconds(time.perf_counter() - began)

    def fetch(self) -> dict:
        """The next batch's rows, on the devices."""
        assert self.feed is not None, "init comes first"
        began = time.perf_counter()
        rows = self.feed.next()
        self.metric_writer.add_data_wait(time.perf_counter() - began)
        return rows

    def take_step(self, rows: dict) -> None:
        """Hands one step to the devices and reads the metrics of an earlier one."""
        annotation = jax.profiler.StepTraceAnnotation("train", step_num=self.step)
        # State, frozen parameters and rows are on the devices: whatever else would have to be sent
        # is a mistake that makes every step slower.
        with annotation, jax.transfer_guard("disallow"):
            self.state, metrics = self.compiled(self.state, self.frozen, rows)
        self.step += 1
        self.samples += self.recipe.batch_size
        self.pending.append((self.step, metrics, rows))
        while len(self.pending) > STEPS_IN_FLIGHT:
            self.check_oldest()

    def check_oldest(self) -> None:
        """Reads the metrics of the oldest step in flight. Raises NotFinite."""
        step, metrics, rows = self.pending.popleft()
        metrics = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        wrong = [name for name, value in metrics.items() if not np.isfinite(value).all()]
        if wrong:
            folder = bad_batch.write(self.workdir, self.recipe, self.frozen, step, metrics, rows)
            before = (
                "nothing was saved before"
                if self.last_saved is None
                else f"the checkpoint of step {self.last_saved} stays"
            )
            raise NotFinite(
                f"caphuman: error: {', '.join(wrong)} of step {step} is NaN or infinite; its batch "
                f"is in {folder}, {before}",
                step,
            )
        self.metric_writer.add(metrics)

    def drain(self) -> None:
        """Waits for all steps in flight and reads their metrics."""
        while self.pending:
            self.check_oldest()

    def close(self) -> None:
        for part in (self.feed, self.writer, self.host_log):
            if part is not None:
                part.close()


class NotFinite(Exception):
    """A metric is infinite or NaN."""

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


def _of_first_host(values: dict[str, Any]) -> dict[str, Any]:
    """The first host's numbers on every host: which checkpoint is the best has one answer."""
    if jax.process_count() == 1:
        return values
    text = np.zeros(2**14, np.uint8)
    written = np.frombuffer(json.dumps(values).encode(), np.uint8)
    text[: len(written)] = written
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))).rstrip(b"\0"))
