"""Networks filled with arrays by their PyTorch names, as the importer does it, but in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights.convert import fits, to_ours
from caphuman_jax.weights.names import table


def from_pytorch(
    network: str,
    cfg: ModelConfig,
    shapes: Mapping[str, Any],
    arrays: Mapping[str, Any],
    *,
    prefix: str = "",
    put: Callable[[np.ndarray], Any] = np.ascontiguousarray,
) -> dict[str, Any]:
    """Fill one network.

    Args:
        network: "unet", "capface", "identity", "vae", "text" or "image_encoder".
        shapes: the network's parameters as nested dicts of anything with `.shape` (see
        `models.abstract`).
        arrays: PyTorch name → array; may read each array when it is asked for. Only names that
            begin with `prefix` are looked at, and each of them must be used, except buffers that
            hold no weights (position_ids).
        put: what becomes of each float32 array at once (`jax.device_put`, for instance), so that no
        second copy is held.
    Returns:
        Nested dicts like `shapes`.
    Raises:
        ModelFolderError: naming every missing, surplus and misshapen array.
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(shapes, sep=".")
    names = {prefix + name: path for name, path in table(network, cfg, wanted).items()}
    unnamed = sorted(set(wanted) - set(names.values()))
    if unnamed:
        raise ModelFolderError(f"{network}: no PyTorch name is known for {', '.join(unnamed)}")

    given = {
        name for name in arrays if name.startswith(prefix) and not name.endswith("position_ids")
    }
    problems = [f"missing {name}" for name in names if name not in given]
    problems += [f"surplus {name}" for name in sorted(given - set(names))]
    filled = {}
    for name, path in names.items():
        if name not in given:
            continue
        array, shape = np.asarray(arrays[name]), tuple(wanted[path].shape)
        if not fits(path, array.shape, shape):
            problems.append(f"{name} has shape {array.shape}, which does not give {shape}")
        elif not problems:
            filled[path] = put(to_ours(path, array, shape).astype(np.float32, copy=False))
    if problems:
        raise ModelFolderError(f"{network}: the weights do not fit: " + "; ".join(problems))
    return traverse_util.unflatten_dict(filled, sep=".")
