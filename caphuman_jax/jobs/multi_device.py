"""A pipeline over all devices of this machine: each makes its own rows of every batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from caphuman_jax.errors import SettingError
from caphuman_jax.models.registry import OPTIONAL
from caphuman_jax.pipeline import loading
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.program import ShardFn
from caphuman_jax.runtime import compiler
from caphuman_jax.runtime.sharding import frozen_shardings, make_mesh, place

_MEASURING = (
    "image_encoder",
    *OPTIONAL,
)  # networks that look at photos, one at a time: on the first device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedParam:
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
) -> tuple[Pipeline, int]:
    """A pipeline over this process's devices, and how many pictures it makes at a time.

    Args:
        model, dtype, memory: see `loading.load`.
        batch: pictures at a time on each device.
        fsdp: divide the weights between the devices; each array is gathered at every step where it
            is used. Otherwise every device holds all of them.

    Raises:
        ModelFolderError: see `loading.load`.
        SettingError: `fsdp` with one device or with 8-bit weights.
    """
    devices = jax.local_devices()
    if fsdp and (len(devices) == 1 or memory == "least"):
        raise SettingError(
            "--fsdp divides the weights between devices, and there is one here"
            if len(devices) == 1
            else "--fsdp cannot divide the 8-bit weights of --memory least; take --memory low"
        )
    if len(devices) == 1:
        pipe = loading.load(model, dtype=dtype, batch=batch, memory=memory)
        return pipe, pipe.batch
    mesh, mode = make_mesh(0 if fsdp else 1, devices), "fsdp" if fsdp else "replicated"

    def put(name: str, params: dict) -> dict:
        return (
            jax.device_put(params, devices[0])
            if name in _MEASURING
            else on_mesh(mesh, {name: params}, mode)[name]
        )

    pipe = loading.load(
        model, dtype=dtype, batch=batch, memory=memory, place=put, shard_fn=shard_over(mesh)
    )
    return pipe, pipe.batch * len(devices)


def on_mesh(mesh: Mesh, networks: dict, mode: str) -> dict:
    """{network: parameters on the host} → on the mesh, whole on every device or ("fsdp")
    divided.
    """
    return compiler.laid_out(place(networks, frozen_shardings(mesh, networks, mode)))


def shard_over(mesh: Mesh) -> ShardFn:
    """Run a function of `generate`'s arguments on every device of a mesh, each for its own rows.

    Under `shard_map`, since the partitioner left to itself exchanges activations where both halves
    of guidance are one batch."""
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def shard(function: Callable, params: dict) -> Callable:
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, params)

        def on_each(params, *others):
            return function(jax.tree.map(_part, params, specs), *others)

        inputs = (specs, rows, rows, whole, whole)
        return jax.shard_map(on_each, mesh=mesh, in_specs=inputs, out_specs=rows, check_vma=False)

    return shard


def _part(leaf: jax.Array, spec: PartitionSpec) -> jax.Array | ShardedParam:
    divided = [(axis, names) for axis, names in enumerate(spec) if names is not None]
    if not divided:
        return leaf
    ((axis, names),) = divided
    return ShardedParam(leaf, axis, names if isinstance(names, tuple) else (names,))
