"""A model's weights, and the LoRAs that are added to them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.weights import lora


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Where weights come from that are not kept as they were read.

    Attributes:
        read: network → its parameters in float32 on the host.
        put: network, those parameters → as the pipeline keeps them.
    """

    read: Callable[[str], dict]
    put: Callable[[str, dict], dict]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsInUse:
    """The weights of a model as it samples.

    Attributes:
        params: {network: parameters}.
        base: the same without LoRAs.
        source: where they were read from, if they were rounded when they were loaded.
        loras: JSON types that say which LoRAs were added.
    """

    params: dict[str, dict]
    base: dict[str, dict]
    source: WeightSource | None = None
    loras: tuple[dict[str, Any], ...] = ()

    def with_loras(
        self, files: Sequence[tuple[str | os.PathLike, lora.Strength]], config: ModelConfig
    ) -> WeightsInUse:
        """The base with these LoRAs alone; (): the base.

        Args:
            files: (file, strength) each.
            config: the model's.

        Raises:
            ModelFolderError: a file that cannot be read or does not fit the model.
        """
        read = [(lora.read_file(path, config), strength) for path, strength in files]
        if read and self.source is not None:  # added before the weights are rounded
            summed = lora.apply({name: self.source.read(name) for name in lora.NETWORKS}, read)
            put = {name: self.source.put(name, params) for name, params in summed.items()}
            params = self.base | put
        else:
            params = lora.apply(self.base, read)
        records = tuple(
            {
                "name": Path(path).name,
                "sha256": _checksum(lora.files(path)),
                "strength": strength,
            }
            for path, strength in files
        )
        return dataclasses.replace(self, params=params, loras=records)


def _checksum(files: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
