"""The training loop, the same from one CPU core to many hosts. `caphuman train` calls `run`.

The order of one turn never changes: look (evaluate, pictures), save together with the position in
the data, fetch, step. The host runs ahead of the devices by `AHEAD` steps; metrics are looked at
that much later, so nothing waits for a step to finish."""

from __future__ import annotations

import collections
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.io import atomic
from caphuman_jax.runtime import compiler, flops, sharding
from caphuman_jax.runtime.preemption import INTERRUPTED, Preemption
from caphuman_jax.training.checkpoints import Checkpoints, differences
from caphuman_jax.training.logging import Report, note_start, quotients
from caphuman_jax.training.recipe import Recipe, State

AHEAD = 2  # steps given to the devices before the metrics of the first of them are looked at
NOT_A_NUMBER = 1
"""Exit code when a metric was not a number."""


class Batches(Protocol):
    """Where batches come from. None in its place: the step draws from what is frozen."""

    def start(self, samples: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows {name: (rows, ...)} of each global batch, without end, after the first
        `samples` pictures of all hosts.
        """


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What the loop does around the steps; nothing here changes the numbers of a run.

    log_every, save_every, evaluate_every, pictures_every: steps; 0: never (the end is always
    saved). keep: so many of the newest checkpoints; best: and the one best by this number of the
    evaluation, the lowest, or the highest with best_highest.
    sharding: "replicated", "zero" or "fsdp"; fsdp: devices that share a copy of what is split, 0
    for all of a slice.
    wandb: project of W&B, empty for none.
    """

    log_every: int = 100
    save_every: int = 2000
    evaluate_every: int = 0
    pictures_every: int = 0
    keep: int = 2
    best: str = ""
    best_highest: bool = False
    sharding: str = "replicated"
    fsdp: int = 1
    tensorboard: bool = True
    wandb: str = ""

    def __post_init__(self):
        if self.sharding not in sharding.MODES:
            raise SettingError(
                f"loop.sharding is {self.sharding!r}; there are {', '.join(sharding.MODES)}"
            )
        if (
            self.log_every < 1
            or self.keep < 1
            or min(self.save_every, self.evaluate_every, self.pictures_every) < 0
        ):
            raise SettingError(
                "loop.log_every and loop.keep are at least 1, loop.save_every, evaluate_every and "
                "pictures_every at least 0"
            )


@dataclasses.dataclass(frozen=True)
class Result:
    """state: at the end, on the mesh; None where the run ended in numbers that are none. exit_code:
    0 or why it ended early.
    """

    state: State | None
    step: int
    exit_code: int


def run(
    recipe: Recipe,
    batches: Batches | None,
    cfg: LoopConfig,
    workdir: str | Path,
    mesh,
    *,
    minutes: float | None = None,
    profile: int = 0,
    config: dict | None = None,
    log: Callable[[str], None] = print,
) -> Result:
    """Trains up to the recipe's steps from the newest checkpoint of `workdir`, or from the recipe's
    beginning; saves and returns early when told to stop.

    minutes: stop after that long. profile: write a trace of so many steps. config: what to keep for
    W&B. Raises DataError for a `workdir` that holds another run."""
    workdir = Path(workdir)
    log = log if jax.process_index() == 0 else lambda line: None
    _prepare(workdir, recipe)
    checkpoints = Checkpoints(
        workdir / "checkpoints", cfg.keep, cfg.best or None, highest=cfg.best_highest
    )
    try:
        with Preemption(minutes) as stop:
            training = _Training(recipe, cfg, mesh, checkpoints, workdir, log)
            training.begin(batches, config)
            try:
                return training.go(stop, profile)
            finally:
                training.close()
    finally:
        checkpoints.close()


class _Training:
    """One run in one process."""

    def __init__(
        self, recipe: Recipe, cfg: LoopConfig, mesh, checkpoints: Checkpoints, workdir: Path, log
    ):
        self.recipe, self.cfg, self.mesh, self.checkpoints, self.workdir, self.log = (
            recipe,
            cfg,
            mesh,
            checkpoints,
            workdir,
            log,
        )
        self.run = {
            "settings": json.loads(json.dumps(recipe.settings)),
            "frozen": dict(recipe.frozen_hashes),
        }
        self.pending: collections.deque = collections.deque()
        self.measured: dict[int, dict[str, float]] = {}
        self.feed: _Feed | None = None
        self.report: Report | None = None

    def begin(self, batches: Batches | None, config: dict | None) -> None:
        """The state restored or begun, the step compiled, the first batch on its way."""
        recipe, mode = self.recipe, self.cfg.sharding
        shapes = recipe.abstract_state()
        places = sharding.state_shardings(self.mesh, shapes, mode)
        found = self.checkpoints.restore(shapes, places, self.run, self.log)
        if found is None:
            self.state = begin_state(recipe, places)
            self.step = self.samples = 0
        else:
            self.state, content = compiler.laid_out(found[0]), found[1]
            self.step, self.samples = content["step"], content["samples"]
            self.log(f"resumed at step {self.step}")
        self.last_saved = self.step if found is not None else None
        frozen_places = sharding.frozen_shardings(self.mesh, recipe.frozen, mode)
        self.frozen = compiler.laid_out(sharding.place(recipe.frozen, frozen_places))
        self.feed = _Feed(batches, self.samples, self.mesh)
        if self.step >= recipe.steps:
            return
        began = time.perf_counter()
        self.compiled = compile_step(recipe, self.mesh, mode, self.frozen, self.feed.peek())
        arithmetic = recipe.flops or counted_flops(recipe, self.mesh, self.frozen, self.feed.peek())
        self.log(
            f"{len(jax.devices())} × {jax.devices()[0].device_kind}, {mode}; step compiled in "
            f"{time.perf_counter() - began:.1f} s"
        )
        self.report = Report(
            self.workdir,
            batch=recipe.batch,
            steps=recipe.steps,
            first=self.step,
            flops=arithmetic,
            tensorboard=self.cfg.tensorboard,
            wandb=self.cfg.wandb,
            settings=config,
            log=self.log,
        )
        if jax.process_index() == 0:
            note_start(self.workdir, self.step)

    def go(self, stop: Preemption, profile: int) -> Result:
        """Steps until the end, or until told to stop."""
        cfg, first, steps = self.cfg, self.step, self.recipe.steps
        trace = _Trace(
            self.workdir / "profile",
            first + 10 if steps > first + 10 + profile else first + 1,
            profile,
            self.drain,
        )
        try:
            while True:
                due = lambda every: (
                    every and self.step != first and (self.step % every == 0 or self.step == steps)
                )
                stopping = self.step < steps and stop.reached(self.step)
                evaluate, pictures = (
                    not stopping and due(every)
                    for every in (cfg.evaluate_every, cfg.pictures_every)
                )
                self.look(evaluate, pictures)
                if (
                    self.step == steps
                    or stopping
                    or due(cfg.save_every)
                    or cfg.best in self.measured.get(self.step, ())
                ):
                    self.save()
                if self.step >= steps or stopping:
                    break
                trace.at(self.step)
                batch = self.fetch()
                self.state, metrics = self.compiled(self.state, self.frozen, batch)
                self.step += 1
                self.samples += self.recipe.batch
                self.pending.append((self.step, metrics, batch))
                while len(self.pending) > AHEAD:
                    self.check_oldest()
                if self.step % cfg.log_every == 0 or self.step in (first + 1, steps):
                    self.drain()
                    self.report.write(self.step)
            self.checkpoints.wait()
        except NotANumber as error:
            self.log(str(error))
            return Result(None, error.step, NOT_A_NUMBER)
        finally:
            trace.close()
        if stop.exit_code or stopping:
            asked = "interrupted" if stop.exit_code == INTERRUPTED else "told to stop"
            self.log(
                f"{asked}: saved at step {self.step} of {steps}; the same command goes on from here"
            )
        return Result(self.state, self.step, stop.exit_code)

    def look(self, evaluate: bool, pictures: bool) -> None:
        """Measures and makes pictures with the averaged parameters."""
        recipe = self.recipe
        measures = [
            measure
            for due, measure in ((evaluate, recipe.evaluate), (pictures, recipe.judge))
            if due and measure
        ]
        pictures = pictures and recipe.pictures is not None
        if not measures and not pictures:
            return
        self.drain()
        began = time.perf_counter()
        given = self.state["ema"] or self.state["params"], self.frozen, self.step
        if measures:
            found = _of_first_host(
                quotients(
                    {
                        name: value
                        for measure in measures
                        for name, value in measure(*given).items()
                    },
                    1,
                )
            )
            self.measured = {
                self.step: {
                    name: value for name, value in found.items() if isinstance(value, float)
                }
            }
            self.report.measured(self.step, found, "evaluation")
        if pictures:
            self.report.pictures(self.step, recipe.pictures(*given))
        self.report.apart(time.perf_counter() - began)

    def save(self) -> None:
        """The state as it is, once every step before it is known to be sound."""
        self.drain()
        if self.step == self.last_saved:
            return
        began = time.perf_counter()
        self.checkpoints.save(
            self.step,
            self.state,
            self.run | {"samples": self.samples},
            self.measured.get(self.step),
        )
        self.measured, self.last_saved = {}, self.step
        self.report.apart(time.perf_counter() - began)

    def fetch(self) -> dict:
        began = time.perf_counter()
        batch = self.feed.next()
        self.report.waited(time.perf_counter() - began)
        return batch

    def check_oldest(self) -> None:
        step, metrics, batch = self.pending.popleft()
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        wrong = [name for name, value in metrics.items() if not np.isfinite(value).all()]
        if wrong:
            raise NotANumber(self.keep_evidence(step, metrics, batch, wrong), step)
        self.report.add(metrics)

    def drain(self) -> None:
        """Waits for all steps given to the devices and looks at their metrics."""
        while self.pending:
            self.check_oldest()

    def keep_evidence(self, step: int, metrics: dict, batch: dict, wrong: list[str]) -> str:
        """Writes WORKDIR/nan-STEP: each host's rows of the batch and the metrics. Returns what to
        tell.
        """
        folder = self.workdir / f"nan-{step}"
        folder.mkdir(exist_ok=True)
        if self.recipe.redraw is not None and not batch:
            batch = self.recipe.redraw(self.frozen, step - 1)
        rows = {name: _local_rows(value) for name, value in batch.items()}
        np.savez(folder / f"batch-{jax.process_index()}.npz", **rows)
        if jax.process_index() == 0:
            told = {
                name: value.tolist() if np.isfinite(value).all() else str(value.tolist())
                for name, value in metrics.items()
            }
            content = {
                "step": step,
                "samples": step * self.recipe.batch,
                "metrics": told,
                "settings": self.run["settings"],
            }
            (folder / "step.json").write_text(json.dumps(content, indent=1))
        before = (
            f"the checkpoint of step {self.last_saved} stays"
            if self.last_saved is not None
            else "nothing was saved before"
        )
        return f"caphuman: error: {', '.join(wrong)} of step {step} is not a number; its batch is in {folder}, {before}"

    def close(self) -> None:
        if self.feed is not None:
            self.feed.close()
        if self.report is not None:
            self.report.close()


class NotANumber(Exception):
    """A metric is infinite or not a number."""

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


def begin_state(recipe: Recipe, places: State) -> State:
    """The state at step 0, each part born where it belongs."""
    params = sharding.place(recipe.init_params(), places["params"])
    with jax.set_mesh(places["step"].mesh):
        return jax.jit(
            recipe.begin,
            out_shardings=compiler.formats(recipe.abstract_state(), places),
            donate_argnums=0,
        )(params)


def compile_step(recipe: Recipe, mesh, mode: str, frozen, batch, options: dict | None = None):
    """The recipe's step as a compiled program over the mesh; see `lower_step`. options: of XLA,
    beside the platform's.
    """
    platform = compiler.platform_of(mesh.devices.flat[0])
    return lower_step(recipe, mesh, mode, frozen, batch).compile(
        compiler_options={**(compiler.options(platform) or {}), **(options or {})} or None
    )


def lower_step(recipe: Recipe, mesh, mode: str, frozen, batch):
    """The recipe's step over the mesh, not compiled yet. frozen and batch: arrays, or their shapes."""
    shapes = recipe.abstract_state()
    places = compiler.formats(shapes, sharding.state_shardings(mesh, shapes, mode))
    frozen_places = compiler.formats(frozen, sharding.frozen_shardings(mesh, frozen, mode))
    by_batch = jax.tree.map(lambda _: sharding.by_batch(mesh), batch)
    step = jax.jit(
        recipe.step,
        in_shardings=(places, frozen_places, by_batch),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(
        shapes, *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (frozen, batch))
    )


def counted_flops(recipe: Recipe, mesh, frozen, batch) -> int:
    """Operations of a step over all devices, counted on what is traced: a compiler's count leaves
    out what it calls libraries for, on a GPU nearly all.
    """
    with jax.set_mesh(mesh):
        return flops.count(
            recipe.step,
            recipe.abstract_state(),
            *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (frozen, batch)),
        )


class _Feed:
    """Batches on the mesh, the next of them placed while a step runs."""

    def __init__(self, batches: Batches | None, samples: int, mesh):
        self.queue: queue.Queue = queue.Queue(maxsize=1)
        self.first: dict | None = None
        self.stopped = threading.Event()
        self.thread = None
        if batches is not None:
            self.thread = threading.Thread(
                target=self._work, args=(batches, samples, mesh), name="batches", daemon=True
            )
            self.thread.start()

    def _work(self, batches: Batches, samples: int, mesh) -> None:
        stream = batches.start(samples)
        try:
            for rows in stream:
                if not self._put(sharding.place_batch(rows, mesh)):
                    return
            self._put(DataError("the data ended; batches are expected without end"))
        except Exception as error:
            self._put(error)
        finally:
            getattr(stream, "close", lambda: None)()

    def _put(self, item) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def peek(self) -> dict:
        """The next batch, which stays the next."""
        if self.first is None:
            self.first = self.next()
        return self.first

    def next(self) -> dict:
        if self.thread is None:
            return {}
        if self.first is not None:
            batch, self.first = self.first, None
            return batch
        item = self.queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(timeout=30)


class _Trace:
    """A trace of `count` steps from `first` on; `drain` waits for the steps under way."""

    def __init__(self, folder: Path, first: int, count: int, drain: Callable[[], None]):
        self.folder, self.first, self.count, self.drain, self.running = (
            folder,
            first,
            count,
            drain,
            False,
        )

    def at(self, step: int) -> None:
        if self.count and step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if self.running and step == self.first + self.count:
            self.drain()
            self.close()

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def _of_first_host(values: dict[str, Any]) -> dict[str, Any]:
    """The first host's numbers on every host: which checkpoint is best is one answer."""
    if jax.process_count() == 1:
        return values
    text = np.zeros(2**14, np.uint8)
    written = np.frombuffer(json.dumps(values).encode(), np.uint8)
    text[: len(written)] = written
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(text))).rstrip(b"\0"))


def _local_rows(value) -> np.ndarray:
    """What this host holds of an array, in order, each part once."""
    if not isinstance(value, jax.Array):
        return np.asarray(value)
    parts = {
        shard.index[0].start or 0 if shard.index else 0: shard.data
        for shard in value.addressable_shards
    }
    rows = [np.asarray(parts[start]) for start in sorted(parts)]
    return np.concatenate(rows) if value.ndim else rows[0]


def _prepare(workdir: Path, recipe: Recipe) -> None:
    """The work folder, with the settings of its run; another run's is refused. All hosts have to
    see the same folder.
    """
    path = workdir / "settings.json"
    settings = json.loads(
        json.dumps(
            {"recipe": recipe.name, "settings": recipe.settings, "frozen": recipe.frozen_hashes}
        )
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = differences(json.loads(path.read_text()), settings)
            if found:
                raise DataError(
                    f"{workdir} holds a run with other settings: {'; '.join(found)}; choose "
                    f"another --workdir or the same settings"
                )
        elif jax.process_index() == 0:
            atomic.write_text(path, json.dumps(settings, indent=1))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the work folder {workdir} cannot be written, or {path.name} not be read: {error}"
        ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir")
        seen = multihost_utils.process_allgather(np.int32(path.exists()))
        if not seen.all():
            raise DataError(
                f"host {int(np.argmin(seen))} does not see {path}: --workdir has to be a folder "
                f"that all hosts share"
            )
