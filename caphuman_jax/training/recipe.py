"""What the training loop needs to know of a model: how its state begins, its step, what is frozen,
how it is looked at and exported.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

State = dict[str, Any]
"""{"params", "opt", "ema", "step"}: nested dicts of arrays; step is an int32 scalar, the steps
taken so far.
"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One kind of training; `caphuman_jax.training.loop.run` drives any.

    name: for people and files. batch: pictures of one step over all devices. steps: of the whole
    run.
    settings: JSON values that decide the run; a work folder with others is refused.
    init_params: () -> nested dicts of float32 numbers on the host (numpy), the same on every host,
    {network: parameters}.
    shapes: what `init_params` returns, as `jax.ShapeDtypeStruct`; nothing is computed for it.
    begin: (params) -> State; can be compiled, so that what it makes is born where it belongs.
    step: (state, frozen, batch) -> (state, metrics); pure, can be compiled, everything random in it
        from (seed, state["step"]). metrics: float32 scalars, "loss" among them; or vectors NAME of
        sums together with NAME_count, which are reported as their quotients.
    frozen: {name: nested dicts of arrays on the host} that steps read and never change, whole on
        every device unless the table of shardings says otherwise. frozen_hashes: {name: sha256} of
        those that belong to the model; checkpoints hold these and no numbers.
    batch_shapes: {name: jax.ShapeDtypeStruct} of a global batch, first axis the pictures; empty
    where the step draws from `frozen`.
    evaluate: (params, frozen, step) -> {metric: number, or vector of sums with its NAME_count} on
    held-out data; params are the averaged ones, on the mesh.
    pictures: (params, frozen, step) -> {name: uint8 (H, W, 3)}, the same seeds every time. judge:
    the same -> {metric: number} of these pictures.
    export: (params on the host, folder, metadata) writes a model folder.
    redraw: (frozen, step) -> {name: array}, the batch that a step without batches drew; to be
    looked at when it went wrong.
    flops: operations of one step over all devices where not all that is traced counts, what is
    computed again for instance."""

    name: str
    batch: int
    steps: int
    settings: dict[str, Any]
    init_params: Callable[[], dict]
    shapes: dict
    begin: Callable[[dict], State]
    step: Callable[[State, dict, dict], tuple[State, dict]]
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)
    frozen_hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    batch_shapes: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    evaluate: Callable[[dict, dict, int], Mapping[str, float]] | None = None
    pictures: Callable[[dict, dict, int], Mapping[str, np.ndarray]] | None = None
    judge: Callable[[dict, dict, int], Mapping[str, float]] | None = None
    export: Callable[[dict, Any, Mapping[str, Any]], None] | None = None
    redraw: Callable[[dict, int], Mapping[str, Any]] | None = None
    flops: float | None = None

    def init(self) -> State:
        """The state at step 0, all of it on one device: for tests and small models. The loop places
        parameters first.
        """
        return self.begin(self.init_params())

    def abstract_state(self) -> State:
        """The state's shapes and dtypes; nothing is computed."""
        return jax.eval_shape(self.begin, self.shapes)


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
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()
