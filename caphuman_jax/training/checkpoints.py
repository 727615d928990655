"""Checkpoints of a run: plain nested dicts, written by Orbax while training continues.

A checkpoint holds params, ema and opt, and `run`: step, number of samples, settings, the names and
hashes of the frozen networks, and shape, dtype and a checksum of every array. Checksums are of the
numbers, not of the files, so they hold on any arrangement of devices. A checkpoint whose checksums
do not match is damaged, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt32
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from caphuman_jax.errors import DataError
from caphuman_jax.io import buckets
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime.distributed import is_lost_host
from caphuman_jax.runtime.sharding import path_name, place
from caphuman_jax.training import s3_checkpoints
from caphuman_jax.training.run_folder import check_same_run, differences
from caphuman_jax.training.step import TrainState

PARTS = {"params": "params", "ema": "ema", "opt": "opt_state"}
"""What is stored of a `TrainState`: name in the checkpoint → field."""


class Checkpoints:
    """Saves and restores a run's state in FOLDER/STEP.

    Args of the constructor:
        folder: where checkpoints are kept.
        keep: how many of the newest stay.
        best: the metric whose best checkpoint stays, too.
        highest: whether the highest value is the best, else the lowest.
        read_only: nothing is written or removed.

    Raises:
        DataError: where the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep: int = 2,
        best: str | None = None,
        *,
        highest: bool = False,
        read_only: bool = False,
    ):
        buckets.check(os.fspath(folder), "checkpoints")
        self.folder = epath.Path(os.path.abspath(folder) if "://" not in str(folder) else folder)
        self.best = best
        self._highest, self._worst = highest, -np.inf if highest else np.inf
        policies: list[keeping.PreservationPolicy] = [keeping.LatestN(keep)]
        if best:
            policies.append(
                keeping.BestN(
                    get_metric_fn=self._rank,
                    reverse=not highest,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keeping.AnyPreservationPolicy(policies),
            best_fn=self._rank if best else None,
            best_mode="max" if highest else "min",
            enable_async_checkpointing=not read_only,
            # Otherwise, what writes waits 20 minutes for a folder that cannot be made.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            **s3_checkpoints.options(self.folder),
        )
        try:
            self.manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=(*PARTS, "run")
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"checkpoints cannot be kept in {self.folder}: {_short(error)}"
            ) from error

    def _rank(self, metrics: Mapping[str, float] | None) -> float:
        value = float((metrics or {}).get(self.best or "", np.nan))
        return value if np.isfinite(value) else self._worst

    def steps(self) -> list[int]:
        """The steps that were saved, in order."""
        return sorted(self.manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the best metric, the newest where none was measured; None if there are no
        checkpoints.
        """
        steps = self.steps()
        if not steps or not self.best:
            return steps[-1] if steps else None
        sign = 1 if self._highest else -1
        return max(steps, key=lambda step: (sign * self._rank(self.manager.metrics(step)), step))

    def save(
        self,
        step: int,
        state: TrainState,
        run: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write `state` as it is now; `run` is what `restore` gives back. Raises
        DataError if this or the last one cannot be written.
        """
        trees = _trees(state)
        content = dict(run) | {"step": step, "arrays": _describe(trees)}
        items: dict[str, ocp.args.CheckpointArgs] = {
            part: ocp.args.PyTreeSave(tree) for part, tree in trees.items()
        }
        items["run"] = ocp.args.JsonSave({"content": content, "sha256": _seal(content)})
        with self._report_errors(step):
            self.manager.save(
                step, args=ocp.args.Composite(**items), metrics=dict(metrics or {}), force=True
            )

    def check(self) -> None:
        """Raises DataError if the last one could not be written; does not wait for it."""
        with self._report_errors(None):
            self.manager.check_for_errors()

    def wait(self) -> None:
        """Until everything is written. Raises DataError if it could not be."""
        with self._report_errors(None):
            self.manager.wait_until_finished()
            self.manager.check_for_errors()

    def close(self) -> None:
        """Waits, and lets go of the folder. Raises DataError as `wait` does."""
        with self._report_errors(None):
            self.manager.close()

    def restore(
        self,
        like: TrainState,
        shardings: TrainState,
        run: Mapping[str, Any],
        log: Callable[[str], None],
    ) -> tuple[TrainState, dict] | None:
        """The newest whole checkpoint, placed by `shardings`, and its `run`; None if there is none
        at all.

        like: shapes of the state. run: entries that the checkpoint's `run` must have too, nested
        dicts of JSON values. A damaged checkpoint is named through `log` and moved to
        FOLDER/../damaged, once a whole one was found. Raises DataError, without moving anything,
        if what is whole does not fit `like` or `run`, naming every difference, and if there are
        checkpoints but none is whole."""
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            content, problem = self._attempt(lambda: self._read_run(step))
            if content is not None:
                self._check(step, content, like, run)
                state, problem = self._attempt(
                    lambda: self._read_state(step, content, like, shardings)
                )
                if state is not None:
                    self._set_all_aside(broken, log)
                    return state, content
            broken[step] = problem
        if broken:
            problems = "; ".join(f"step {step}: {problem}" for step, problem in broken.items())
            raise DataError(
                f"no checkpoint in {self.folder} can be read (steps {', '.join(map(str, broken))} "
                f"are damaged); "
                f"start again in another work folder, or bring a copy of a checkpoint back "
                f"({problems})"
            )
        return None

    def read_average(self, step: int) -> tuple[dict, dict]:
        """(averaged parameters as numpy, `run`) of one checkpoint, on any machine; the parameters
        themselves where no average was kept.

        Raises DataError where it is damaged or missing.
        """
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise DataError(f"{self.folder} has no checkpoint of step {step}; there are: {there}")
        try:
            content = self._read_run(step)
            part = "ema" if _under(content, "ema") else "params"
            as_numpy = _unflatten(
                {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in _under(content, part)}
            )
            found = self.manager.restore(
                step,
                args=ocp.args.Composite(**{part: ocp.args.PyTreeRestore(restore_args=as_numpy)}),
            )[part]
            _compare({part: found}, content)
        except Exception as error:
            raise DataError(
                f"the checkpoint of step {step} in {self.folder} is damaged: {_short(error)}"
            ) from error
        return found, content

    def _read_run(self, step: int) -> dict:
        sealed = self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
            "run"
        ]
        if _seal(sealed["content"]) != sealed["sha256"]:
            raise ValueError("its description was changed")
        return sealed["content"]

    def _read_state(
        self, step: int, content: dict, like: TrainState, shardings: TrainState
    ) -> TrainState:
        place_leaf = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        wanted = _trees(jax.tree.map(place_leaf, like, shardings))
        args = {
            part: ocp.args.PyTreeRestore(
                tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
            )
            for part, tree in wanted.items()
        }
        found = self.manager.restore(step, args=ocp.args.Composite(**args))
        _compare({part: found[part] for part in wanted}, content)
        restored = {PARTS[part]: _as(getattr(like, PARTS[part]), found[part]) for part in wanted}
        restored["step"] = place(np.int32(content["step"]), shardings.step)
        return dataclasses.replace(like, **restored)

    def _check(self, step: int, content: dict, like: TrainState, run: Mapping[str, Any]) -> None:
        where = f"the checkpoint of step {step} in {self.folder}"
        check_same_run({key: content.get(key) for key in run}, run, where)
        shape = lambda leaf: {"shape": list(leaf["shape"]), "dtype": leaf["dtype"]}
        stored = {name: shape(leaf) for name, leaf in content["arrays"].items()}
        wanted = {name: shape(leaf) for name, leaf in _describe(_trees(like), sums=False).items()}
        show = lambda leaf: f"{leaf['dtype']}{tuple(leaf['shape'])}"
        problems = differences(stored, wanted, show)
        if problems:
            raise DataError(
                f"{where} is of another structure: {'; '.join(problems)}; choose another --workdir"
            )

    def _attempt(self, read: Callable[[], Any]) -> tuple[Any, str]:
        """(what was read, "") or (None, why not); all hosts agree on which."""
        try:
            result, problem = read(), ""
        except Exception as error:  # damaged bytes may raise anything; it is reported by name
            result, problem = None, _short(error)
        if (
            jax.process_count() > 1
            and multihost_utils.process_allgather(np.int32(result is None)).any()
        ):
            result, problem = None, problem or "another host could not read its part"
        return result, problem

    def _set_all_aside(self, broken: Mapping[int, str], log: Callable[[str], None]) -> None:
        for step, problem in broken.items():
            log(
                f"WARNING: the checkpoint of step {step} in {self.folder} is damaged ({problem}) "
                f"and was moved to {self._set_aside(step)}; "
                "going back to the one before it"
            )

    def _set_aside(self, step: int) -> epath.Path:
        target = self.folder.parent / "damaged" / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        _barrier("damaged")
        if jax.process_index() == 0:
            if buckets.is_url(str(self.folder)):
                buckets.move(str(self.folder / str(step)), str(target))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.folder / str(step)).rename(target)
        _barrier("moved")
        self.manager.reload()
        return target

    @contextlib.contextmanager
    def _report_errors(self, step: int | None):
        """Turns what Orbax raises when it cannot write into one line."""
        try:
            yield
        except Exception as error:
            if is_lost_host(error):
                raise
            whole = (
                sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
                if self.folder.exists()
                else []
            )
            before = (
                f"the newest whole one is of step {whole[-1]}" if whole else "there is none yet"
            )
            which = (
                f"the checkpoint of step {step}, or the one before it,"
                if step is not None
                else "a checkpoint"
            )
            raise DataError(
                f"{which} cannot be written to {self.folder}: {_short(error)}; is the disk full? "
                f"{before}"
            ) from error


@jax.jit
def checksum(x: Shaped[Array, "*shape"]) -> UInt32[jax.Array, ""]:
    """uint32 of an array's bits, place by place, the same however it is split over devices; any one
    changed number changes it.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(
        jnp.uint32
    )
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * (place * np.uint32(0x9E3779B1) | np.uint32(1)), dtype=jnp.uint32)


def _describe(trees: dict, sums: bool = True) -> dict[str, dict]:
    """{"params/a/b": {"shape", "dtype", "sum"}}."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}
    found: dict[str, dict[str, Any]] = {
        name: {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
        for name, leaf in leaves.items()
    }
    if sums:
        for name, value in jax.device_get(
            {name: checksum(leaf) for name, leaf in leaves.items()}
        ).items():
            found[name]["sum"] = int(value)
    return found


def _compare(trees: dict, content: dict) -> None:
    found = _describe(trees)
    wrong = [name for name, leaf in found.items() if leaf["sum"] != content["arrays"][name]["sum"]]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays are not what was saved, {wrong[0]} among them")


def _trees(state: TrainState) -> dict[str, dict]:
    """The parts of a state as they are stored; an average that is not kept is left out."""
    trees = {part: getattr(state, field) for part, field in PARTS.items()}
    return {part: _plain(tree) for part, tree in trees.items() if jax.tree.leaves(tree)}


def _plain(tree: Any) -> dict:
    """Any tree as nested dicts with string keys: Optax's tuples by number, their entries
    by name.
    """
    return _unflatten(
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    )


def _as(like: Any, plain: dict) -> Any:
    """Inverse of `_plain`."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(plain)}
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like)


def _unflatten(flat: Mapping[str, Any]) -> dict:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _under(content: dict, part: str) -> list[str]:
    return [
        name.removeprefix(part + "/") for name in content["arrays"] if name.startswith(part + "/")
    ]


def _seal(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
