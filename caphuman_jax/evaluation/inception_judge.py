"""Inception v3's features of pictures, from the weights that FID is computed with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import inception
from caphuman_jax.runtime.fixed_batches import batches
from caphuman_jax.weights.checkpoint_files import open_checkpoint

FILE = "pt_inception-2015-12-05-6726825d.pth"
_AT_A_TIME = 8
_NORM = ("weight", "bias", "running_mean", "running_var")


class InceptionJudge:
    """Pictures → Inception's features, computed in float32.

    Attributes:
        sha256: of the weights' names and numbers.
    """

    def __init__(self, path: str | Path):
        """Read the weights from a file of PyTorch or safetensors.

        Raises:
            ModelFolderError: it cannot be read, or is not this network.
        """
        params, digest = {}, hashlib.sha256()
        with open_checkpoint(path) as file:
            for name, layer in inception.LAYERS.items():
                shape = (layer.outputs, layer.inputs, *layer.kernel)
                keys = {f"{name}.conv.weight": shape}
                keys |= {f"{name}.bn.{part}": (layer.outputs,) for part in _NORM}
                for key, wanted in keys.items():
                    if key not in file or file.shape(key) != wanted:
                        found = file.shape(key) if key in file else "missing"
                        raise ModelFolderError(
                            f"{path} is not the Inception v3 that FID takes: {key} is {found}, not "
                            f"{wanted}; take {FILE}"
                        )
                arrays = [np.asarray(file[key], np.float32) for key in keys]
                for key, array in zip(keys, arrays):
                    digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
                params[name] = inception.folded(*arrays)
        self.sha256 = digest.hexdigest()
        self._params, self._features = jax.device_put(params), jax.jit(inception.features)

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 2048) float32 of images (H, W, 3) uint8 of one size."""
        found = []
        for part, filled in batches(list(images), _AT_A_TIME):
            batch = jnp.asarray(np.stack(filled), jnp.float32) / 255
            found.append(np.asarray(self._features(self._params, batch))[: len(part)])
        return np.concatenate(found)
