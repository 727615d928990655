"""A pipeline over all devices of this machine: each makes its own pictures of every batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from caphuman_jax.errors import SettingError
from caphuman_jax.models.registry import OPTIONAL
from caphuman_jax.pipeline import pipeline
from caphuman_jax.runtime import compiler
from caphuman_jax.runtime.sharding import frozen_shardings, make_mesh, place

_MEASURING = (
    "image_encoder",
    *OPTIONAL,
)  # networks that look at photos, one at a time: on the first device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """A device's part of an array that is divided along `axis` over the mesh axes `names`."""

    values: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def dense(self) -> jax.Array:
        """The whole array, gathered from all devices."""
        return jax.lax.all_gather(self.values, self.names, axis=self.axis, tiled=True)


def load(
    model: str | os.PathLike,
    *,
    dtype: str | None = None,
    batch: int | None = None,
    fsdp: bool = False,
    memory: str = "normal",
) -> tuple[pipeline.Pipeline, int]:
    """The pipeline and how many pictures it makes at a time, `batch` on each of this process's
    devices.

    The weights lie whole on every device; with `fsdp` each holds a part of them, and gathers every
    array at every step where it is used. Raises ModelFolderError, SettingError."""
    devices = jax.local_devices()
    if fsdp and (len(devices) == 1 or memory == "least"):
        raise SettingError(
            "--fsdp divides the weights between devices, and there is one here"
            if len(devices) == 1
            else "--fsdp cannot divide the 8-bit weights of --memory least; take --memory low"
        )
    if len(devices) == 1:
        pipe = pipeline.load(model, dtype=dtype, batch=batch, memory=memory)
        return pipe, pipe.batch
    mesh, mode = make_mesh(0 if fsdp else 1, devices), "fsdp" if fsdp else "replicated"

    def put(name: str, params: dict) -> dict:
        return (
            jax.device_put(params, devices[0])
            if name in _MEASURING
            else on_mesh(mesh, {name: params}, mode)[name]
        )

    pipe = pipeline.load(model, dtype=dtype, batch=batch, memory=memory, place=put)
    pipe.spread = spread_over(mesh, pipe)
    return pipe, pipe.batch * len(devices)


def on_mesh(mesh: Mesh, networks: dict, mode: str) -> dict:
    """{network: parameters on the host} → on the mesh, whole on every device or ("fsdp") divided."""
    return compiler.laid_out(place(networks, frozen_shardings(mesh, networks, mode)))


def spread_over(mesh: Mesh, pipe: pipeline.Pipeline) -> Callable:
    """What makes a function of `generate`'s arguments run on every device of a mesh, for its own
    rows.

    Under `shard_map`, since the partitioner left to itself exchanges activations where both halves
    of guidance are one batch."""
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def spread(function):
        def on_each(params, *others):
            return function(
                jax.tree.map(_part, params, {name: specs[name] for name in params}), *others
            )

        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, pipe.params)
        used = lambda params: {name: specs[name] for name in params}

        def run(params, *others):
            inputs = (used(params), rows, rows, whole, whole)
            return jax.shard_map(
                on_each, mesh=mesh, in_specs=inputs, out_specs=rows, check_vma=False
            )(params, *others)

        return run

    return spread


def _part(leaf: jax.Array, spec: PartitionSpec) -> jax.Array | Part:
    divided = [(axis, names) for axis, names in enumerate(spec) if names is not None]
    if not divided:
        return leaf
    ((axis, names),) = divided
    return Part(leaf, axis, names if isinstance(names, tuple) else (names,))
