"""A batch whose loss or gradient is NaN or infinite, as files: what caused it can be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caphuman_jax.io import atomic
from caphuman_jax.runtime import sharding
from caphuman_jax.training.recipe import Recipe


def write(
    workdir: Path, recipe: Recipe, frozen, step: int, metrics: Mapping[str, np.ndarray], rows
) -> Path:
    """Writes WORKDIR/nan-STEP: this host's rows of the batch and, on the first host, the metrics.

    Args:
        workdir: of the run.
        recipe: what is trained.
        frozen: the frozen parameters, from which some recipes sample their rows.
        step: the number of the step.
        metrics: of the step.
        rows: of the step, empty where the step samples its own.

    Returns:
        The folder.
    """
    folder = workdir / f"nan-{step}"
    folder.mkdir(exist_ok=True)
    batch = rows or recipe.sampled_rows(frozen, step - 1)
    arrays: dict[str, Any] = {
        sharding.path_name(path): _local_rows(value)
        for path, value in jax.tree_util.tree_leaves_with_path(dict(batch))
    }
    with atomic.file(folder / f"batch-{jax.process_index()}.npz") as part:
        with open(part, "wb") as file:  # NumPy would add .npz to a path
            np.savez(file, **arrays)
    if jax.process_index() == 0:
        numbers = {
            name: value.tolist() if np.isfinite(value).all() else str(value.tolist())
            for name, value in metrics.items()
        }
        content = {
            "step": step,
            "samples": step * recipe.batch_size,
            "metrics": numbers,
            "settings": recipe.settings,
        }
        atomic.write_text(folder / "step.json", json.dumps(content, indent=1))
    return folder


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
