"""Is there room for a run: on the disk for its checkpoints, in memory for its step? Asked before
the first step, so that a run does not fail hours later.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.io import buckets
from caphuman_jax.training.checkpoints import PARTS
from caphuman_jax.training.step import TrainState


def checkpoint_bytes(state: TrainState) -> int:
    """Bytes of one checkpoint of a state, arrays or their shapes."""
    trees = [getattr(state, field) for field in PARTS.values()]
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(trees))


def check_disk(folder: Path, needed: int) -> None:
    """Raises DataError where fewer than `needed` bytes are free. Buckets have no limit."""
    if buckets.url_of(folder) is not None:
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {_size(free)} free, but one checkpoint needs {_size(needed)}; make "
            f"room, or choose another --workdir"
        )


def check_memory(compiled: Any) -> None:
    """Raises SettingError where a compiled step needs more memory than a device has, or, on CPUs,
    than this machine has left.

    Args:
        compiled: of `compile_step`.
    """
    stats = compiled.memory_analysis()
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    new = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    if limit:
        needed = new + stats.argument_size_in_bytes + stats.generated_code_size_in_bytes
        has = f"a {device.device_kind} has {_size(limit)} for programs"
    else:
        needed, limit = new * len(jax.local_devices()), available_memory()
        has = f"this machine has {_size(limit or 0)} left"
    if limit and needed > limit:
        raise SettingError(
            f"a step needs {_size(needed)}, but {has}; take a smaller training.batch_size, more "
            f"training.accumulate, training.remat=blocks or loop.sharding=zero (`caphuman compile` "
            f"says what fits)"
        )


def available_memory() -> int | None:
    """Bytes that programs of this machine can still have; None where it does not say (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _size(number: float) -> str:
    return f"{number / 2**30:.3g} GiB" if number >= 2**27 else f"{number / 2**20:.3g} MiB"
