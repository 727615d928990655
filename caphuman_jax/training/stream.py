"""Batches of records for a step of control.py: read and decoded on each host for its share, made
into pictures and hints on the devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.runtime import sharding
from caphuman_jax.training import batches
from caphuman_jax.training.control import ControlTraining
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.augment_sampling import Drops
from data_pipeline.loading.loader import make_loader
from data_pipeline.records.reader import RecordsFolder

COMPUTED = {"moments": "vae", "text": "text", "image_tokens": "image_encoder"}
"""What records may hold of a model's networks: feature → network."""


class RecordBatches:
    """The records of `config.data` for a model; `start` is what the loop asks for.

    stored: what of COMPUTED the records hold. shared: {"head": arrays of the head model}, to be
    frozen under "data", where hints are rendered. Raises DataError or SettingError where records
    and model do not fit."""

    def __init__(
        self,
        config,
        model: ModelConfig,
        cfg: ControlTraining,
        mesh=None,
        model_hashes: Mapping[str, str] | None = None,
    ):
        if not config.data:
            raise DataError(
                "no records given: --config.data=DIR, made by caphuman prepare --photos PHOTOS "
                "--out DIR --model FOLDER"
            )
        self.records, self.model, self.cfg, self.mesh = RecordsFolder(config.data), model, cfg, mesh
        self.stored = {name for name in COMPUTED if self.records.feature(name) is not None}
        if config.latents == "pictures":
            self.stored.discard("moments")
        self.settings = {
            "loader": config.loader,
            "hints": config.hints,
            "lent_identity": config.lent_identity,
            "latents": config.latents or None,
            "recognizer": model.identity.recognizer.partition("/")[0],
            "drop": Drops(cfg.drop_text, cfg.drop_identity, cfg.drop_identity),
            "augment": AugmentConfig(**config.augment),
            "light": config.light,
        }
        self._check(model_hashes or {})
        self.shared = {} if config.hints == "pictures" else {"head": _arrays(load_head(model.head))}
        self.batch_shapes = self._shapes()
        self.told = f"{self.records.count('train')} records to train on" + (
            f", {', '.join(sorted(self.stored))} stored"
            if self.stored
            else ", nothing stored: everything is computed on the fly"
        )

    def start(self, samples: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of every batch after the first `samples` pictures, by flat names
        ("head/scale"); without end.
        """
        loader = make_loader(
            self.records,
            "train",
            batch=self.cfg.batch,
            seed=self.cfg.seed,
            start=samples,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **self.settings,
        )
        try:
            yield from map(flat, loader)
        finally:
            loader.close()

    def held_out(self, count: int) -> list[dict[str, np.ndarray]]:
        """This host's rows of as many whole batches of the split "test" as `count` pictures fill,
        unchanged; the last may have rows of weight 0.
        """
        if not self.records.splits.get("test"):
            return []
        loader = make_loader(
            self.records,
            "test",
            batch=self.cfg.batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            one_pass=True,
            **{name: self.settings[name] for name in ("loader", "hints", "latents", "recognizer")},
        )
        try:
            return [flat(batch) for _, batch in zip(range(max(count // self.cfg.batch, 1)), loader)]
        finally:
            loader.close()

    def held_out_photos(self, count: int) -> list[np.ndarray]:
        """The first photos (S, S, 3) uint8 of the split "test", as they are stored."""
        numbers = range(min(count, self.records.splits.get("test", 0)))
        return [
            self.records.pixels("photo", self.records.record("test", number, {"photo"})["photo"])
            for number in numbers
        ]

    def assemble(self, shared: dict | None, rows: dict) -> dict:
        """What the loader gave → the batch of a step, each device its own rows; see
        `batches.assemble`.
        """
        size = self.model.image_size

        def make(shared, rows):
            model = load_head(self.model.head) if shared else None
            return batches.assemble(
                nested(rows), _with_arrays(model, shared["head"]) if shared else None, size
            )

        return sharding.over_batch(self.mesh, make)(shared or {}, rows)

    def _check(self, model_hashes: Mapping[str, str]) -> None:
        records, model = self.records, self.model
        if records.size != model.image_size:
            raise DataError(
                f"{records.path} is for pictures of {records.size} pixels, the model {model.name} "
                f"makes {model.image_size}; prepare again with --model"
            )
        latent = model.image_size // model.vae.downsampling
        wanted = {
            "moments": (2, latent, latent, 2 * model.vae.latent_channels),
            "text": (None, model.text.length, model.unet.cross_attention_dim),
            "image_tokens": (None, model.identity.image_width),
            f"recognition/{self.settings['recognizer']}": (model.identity.recognition_width,),
        }
        for name, shape in wanted.items():
            feature = records.feature(name)
            if feature is None and name in COMPUTED:
                continue
            if feature is None or any(
                n not in (None, m) for n, m in zip(shape, feature.shape, strict=True)
            ):
                told = "nothing" if feature is None else f"{feature.shape}"
                raise DataError(
                    f"{records.path} holds {told} for {name}, the model {model.name} needs "
                    f"{shape}; prepare the photos with --model"
                )
        networks = records.manifest.get("networks", {})
        other = [
            network
            for name, network in COMPUTED.items()
            if name in self.stored
            and networks.get(f"model/{network}", model_hashes.get(network))
            != model_hashes.get(network, networks.get(f"model/{network}"))
        ]
        if other:
            raise DataError(
                f"{records.path} was made with another {' and '.join(other)} than the base's; "
                f"prepare the photos again with the base as --model"
            )
        if self.cfg.batch % jax.process_count():
            raise SettingError(
                f"training.batch = {self.cfg.batch} cannot be divided over {jax.process_count()} "
                f"hosts"
            )

    def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows = self.start(0)
        first = next(rows)
        rows.close()
        return {
            name: jax.ShapeDtypeStruct((self.cfg.batch, *array.shape[1:]), array.dtype)
            for name, array in first.items()
        }


def flat(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"head": {"scale": …}, …} → {"head/scale": …, …}."""
    return {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(batch))
    }


def nested(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`."""
    return traverse_util.unflatten_dict(dict(rows), sep="/")


def _arrays(model) -> dict[str, np.ndarray]:
    """The arrays of a head model by number: a plain dict, as frozen trees are."""
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(model))}


def _with_arrays(model, arrays: Mapping[str, Any]):
    """A head model with `_arrays` in place of its own."""
    return jax.tree.unflatten(
        jax.tree.structure(model), [arrays[str(number)] for number in range(len(arrays))]
    )
