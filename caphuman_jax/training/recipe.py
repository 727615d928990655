"""What the training loop needs to know of a model: a recipe, its evaluators and its stages."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from caphuman_jax.errors import SettingError
from caphuman_jax.training.step import TrainState, Tree

Log = Callable[[str], None]


class Recipe(abc.ABC):
    """One kind of training; `caphuman_jax.training.loop.run` drives any.

    Attributes:
        name: for people and files.
        batch_size: pictures of one step over all devices.
        steps: of the whole run.
        settings: JSON values that decide the run; a checkpoint made with others is refused.
        param_shapes: what `init_params` returns, as `jax.ShapeDtypeStruct`.
        frozen: {name: nested dicts of arrays on the host} that steps read and never change, whole
            on every device unless the table of shardings says otherwise.
        frozen_hashes: {name: sha256} of those that belong to the model; checkpoints hold these
            instead of the numbers.
        evaluators: {name: evaluator}, run in this order.
        flops: operations of one step over all devices; None to count what is traced.
    """

    name: str
    batch_size: int
    steps: int
    settings: dict[str, Any]
    param_shapes: Tree
    frozen: Tree
    frozen_hashes: Mapping[str, str] = {}
    evaluators: Mapping[str, Evaluator] = {}
    flops: float | None = None

    @abc.abstractmethod
    def init_params(self) -> Tree:
        """{network: parameters} at step 0, float32 on the host, the same on every host."""

    @abc.abstractmethod
    def init_state(self, params: Tree) -> TrainState:
        """The state at step 0; can be compiled."""

    @abc.abstractmethod
    def train_step(
        self, state: TrainState, frozen: Tree, rows: dict
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step: (state, metrics) of a state and a batch's rows; see `step.make_train_step`.

        `rows` is {} where the step samples its batch from `frozen`.
        """

    def sampled_rows(self, frozen: Tree, step: int) -> Mapping[str, Any]:
        """The batch that step `step` (from 0) sampled from `frozen`, to be saved after a NaN."""
        return {}

    def count_flops(self, lanes: int = 1) -> float | None:
        """`flops` on matrix units with sides of `lanes` (`runtime.flops.of`); None if unknown."""
        return self.flops if lanes == 1 else None

    def abstract_state(self) -> TrainState:
        """The state's shapes and dtypes; nothing is computed."""
        return jax.eval_shape(self.init_state, self.param_shapes)


class RowSource(Protocol):
    """Where batches come from."""

    def start(self, samples: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows {name: (rows, ...)} of each global batch, without end, after the first
        `samples` pictures of all hosts.
        """


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
        metrics: {name: number, or a vector of sums with its NAME_count}.
        images: {name: uint8 (H, W, 3)}.
    """

    metrics: Mapping[str, Any]
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Something that is measured or shown while training.

    Attributes:
        every: steps between two evaluations, 0 for never; the last step is always evaluated.
        evaluate: (params, frozen, step) → Evaluation; params are the averaged ones, on the mesh.
            Every host calls it, the first host's numbers count.
    """

    every: int
    evaluate: Callable[[Tree, Tree, int], Evaluation]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the trainings that a run consists of, each with a loop and a work folder of its own.

    Attributes:
        name: for people.
        workdir: its checkpoints, metrics and model folder.
        loop: entries of `LoopConfig`.
        build: (mesh, log) → (recipe, where its rows come from, or None where steps sample).
        export: (params on the host, folder, metadata) writes the model folder.
    """

    name: str
    workdir: Path
    loop: Mapping[str, Any]
    build: Callable[[Any, Log], tuple[Recipe, RowSource | None]]
    export: Callable[[Tree, Path, Mapping[str, Any]], None]

    @property
    def model_folder(self) -> Path:
        return self.workdir / "model"


def tree_hash(tree: Any) -> str:
    """SHA-256 over paths, shapes, dtypes and bytes of a tree of arrays on the host, in the order of
    the paths.
    """
    found = hashlib.sha256()
    for path, leaf in sorted(
        jax.tree_util.tree_leaves_with_path(tree), key=lambda item: jax.tree_util.keystr(item[0])
    ):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def make_evaluators(
    config: Mapping[str, Mapping[str, Any]], known: Mapping[str, Callable[..., Any]]
) -> dict[str, Evaluator]:
    """The evaluators that a configuration asks for.

    Args:
        config: {name: {"every": steps, **options}}.
        known: {name: (**options) → the evaluation, or None where there is nothing to evaluate on}.

    Raises:
        SettingError: for a name or an option that there is not.
    """
    found = {}
    for name, entry in config.items():
        if name not in known:
            raise SettingError(f"evaluators.{name} is not known; known: {', '.join(known)}")
        every, options = entry.get("every", 0), {k: v for k, v in entry.items() if k != "every"}
        if not isinstance(every, int) or every < 0:
            raise SettingError(f"evaluators.{name}.every is {every!r}; it is a number of steps")
        try:
            inspect.signature(known[name]).bind(**options)
        except TypeError as error:
            raise SettingError(f"evaluators.{name}: {error}") from error
        evaluate = known[name](**options) if every else None
        if evaluate is not None:
            found[name] = Evaluator(every, evaluate)
    return found
