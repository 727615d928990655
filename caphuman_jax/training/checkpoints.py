"""Checkpoints of a run: plain nested dicts through Orbax, the newest few kept."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from caphuman_jax.errors import DataError


class Checkpoints:
    """Saves and restores a run's state; writing happens beside training."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        self.manager = ocp.CheckpointManager(
            Path(folder).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True))

    def save(self, step: int, state: dict) -> None:
        """Begins to write `state` as it is now."""
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: dict) -> dict | None:
        """The newest state, placed as `like` is; None if there is none. Raises DataError where it does not fit `like`."""
        step = self.manager.latest_step()
        if step is None:
            return None
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            return self.manager.restore(step, args=ocp.args.StandardRestore(wanted))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"checkpoint {step} in {self.manager.directory} is of another configuration: {error}") from error

    def close(self) -> None:
        """Waits until everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()
