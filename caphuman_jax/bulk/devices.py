"""A pipeline over all devices of this machine: each makes its part of every batch."""

from __future__ import annotations

import os

import jax

from caphuman_jax import pipeline
from caphuman_jax.errors import SettingError
from caphuman_jax.models import OPTIONAL
from caphuman_jax.training.sharding import by_batch, frozen_shardings, make_mesh, place

_MEASURING = ("image_encoder", "deca_encoder", *OPTIONAL)  # networks that look at photos, one at a time: on the first device


def load(model: str | os.PathLike, *, dtype: str | None = None, batch: int | None = None, fsdp: bool = False) -> tuple[pipeline.Pipeline, int]:
    """The pipeline and how many pictures it makes at a time, `batch` on each of this process's devices.

    The weights lie whole on every device; with `fsdp` each holds a part of them, and gathers a layer when it comes to it.
    Raises ModelFolderError, SettingError.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        if fsdp:
            raise SettingError("--fsdp divides the weights between devices, and there is one here")
        pipe = pipeline.load(model, dtype=dtype, batch=batch)
        return pipe, pipe.batch
    mesh, mode = make_mesh(0 if fsdp else 1, devices), "fsdp" if fsdp else "replicated"

    def on_mesh(name: str, params: dict) -> dict:
        if name in _MEASURING:
            return jax.device_put(params, devices[0])
        return place({name: params}, frozen_shardings(mesh, {name: params}, mode))[name]

    pipe = pipeline.load(model, dtype=dtype, batch=batch, place=on_mesh)
    pipe.rows_on = by_batch(mesh)
    return pipe, pipe.batch * len(devices)
