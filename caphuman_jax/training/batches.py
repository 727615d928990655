"""Batches of records for training CapFace: each host reads and decodes its rows, and the devices
make pictures and hints of them (`make_batch`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import from_picture, render_hints_batch, unpack_hints
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.runtime import sharding
from caphuman_jax.training.objective import Batch
from caphuman_jax.training.run_config import from_config
from data_pipeline.loading import augment
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.augment_sampling import Drops
from data_pipeline.loading.loader import make_loader
from data_pipeline.records import schema
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
        cfg,
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
        self.settings: dict[str, Any] = {
            "loader": config.loader,
            "hints": config.hints,
            "identity_swap_prob": config.identity_swap_prob,
            "latents": config.latents or None,
            "recognizer": model.identity.recognizer.partition("/")[0],
            "drop": Drops(cfg.no_text_prob, cfg.no_identity_prob, cfg.no_identity_prob),
            "augment": from_config(AugmentConfig, config.augment, "augment"),
            "light": config.light,
        }
        self._check(model_hashes or {})
        self.shared = {} if config.hints == "pictures" else {"head": _arrays(load_head(model.head))}
        self.batch_shapes = self._shapes()
        self.summary = f"{self.records.count('train')} records to train on" + (
            f", {', '.join(sorted(self.stored))} stored"
            if self.stored
            else ", nothing stored: everything is computed on the fly"
        )

    def start(self, samples: int) -> Generator[dict[str, np.ndarray], None, None]:
        """This host's rows of every batch after the first `samples` pictures, as `make_loader`
        gives them; without end.
        """
        loader = make_loader(
            self.records,
            "train",
            batch=self.cfg.batch_size,
            seed=self.cfg.seed,
            start=samples,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **self.settings,
        )
        try:
            yield from loader
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
            batch=self.cfg.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            one_pass=True,
            **{name: self.settings[name] for name in ("loader", "hints", "latents", "recognizer")},
        )
        try:
            return [rows for _, rows in zip(range(max(count // self.cfg.batch_size, 1)), loader)]
        finally:
            loader.close()

    def held_out_photos(self, count: int) -> list[np.ndarray]:
        """The first photos (S, S, 3) uint8 of the split "test", as they are stored."""
        numbers = range(min(count, self.records.splits.get("test", 0)))
        return [
            self.records.pixels("photo", self.records.record("test", number, {"photo"})["photo"])
            for number in numbers
        ]

    def make_batch(self, shared: dict | None, rows: dict) -> Batch:
        """The batch of a step (`make_batch`), each device its own rows; `shared` is on all of
        them.
        """

        def make(shared, rows):
            head = _with_arrays(load_head(self.model.head), shared["head"]) if shared else None
            return make_batch(rows, head, self.model.image_size)

        return sharding.over_batch(self.mesh, make)(shared or {}, rows)

    def _check(self, model_hashes: Mapping[str, str]) -> None:
        records, model = self.records, self.model
        if records.size != model.image_size:
            raise DataError(
                f"{records.path} is for pictures of {records.size} pixels, the model {model.name} "
                f"makes {model.image_size}; prepare again with --size {model.image_size}"
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
                found = "nothing" if feature is None else f"{feature.shape}"
                raise DataError(
                    f"{records.path} holds {found} for {name}, the model {model.name} needs "
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
        if self.cfg.batch_size % jax.process_count():
            raise SettingError(
                f"training.batch_size = {self.cfg.batch_size} cannot be divided over {jax.process_count()} "  # noqa: E501
                f"hosts"
            )

    def _shapes(self) -> dict[str, Any]:
        rows = self.start(0)
        first = next(rows)
        rows.close()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.cfg.batch_size, *x.shape[1:]), x.dtype), first
        )


def make_batch(rows: Mapping, head_model: HeadModel | None, size: int) -> Batch:
    """The batch of a step, made of rows of records. Pure, to be compiled.

    Photos and heads are changed together and hints rendered; entries of other fields of `Batch` are
    passed on as they are. Stored moments are those of the mirror
    image already. Rendering takes all triangles of a batch at once: over a mesh call this by
    `sharding.over_batch`, each device for its own rows.

    Args:
        rows: B rows as `make_loader` gives them.
        head_model: of the rows' heads; None where hints are stored as pictures.
        size: height and width of the pictures to train on.
    """
    change, light = rows["change"], rows["light"]
    side = (
        rows["head"]["size"][:, 0]
        if "head" in rows
        else jnp.full(light.shape, rows["hints"].shape[2], jnp.float32)
    )
    coordinates = augment.source_coordinates(change, side[:, None, None], size)
    photo = identity_input = None
    if "identity_input" in rows:
        identity_input = rows["identity_input"].astype(jnp.float32) / 255
    raw = False
    if "head" in rows:
        assert head_model is not None, "rows with heads come with their model"
        hints = _rendered(rows, head_model, size)
        raw = not head_model.clips_hints(rows["head"]["albedo"].shape[1:])
    else:
        hints = _stored_hints(rows["hints"], change, coordinates, side)
    if "picture" in rows:
        gain = light[:, None, None, None]
        photo = jnp.minimum(_warped(rows["picture"], coordinates, side) * gain, 1) * 2 - 1
        most = jnp.inf if raw else 1.0
        hints = jnp.concatenate([hints[..., :3], jnp.minimum(hints[..., 3:] * gain, most)], axis=-1)
    made: dict[str, Any] = {
        "hints": hints,
        "region": _warped(rows["region"], coordinates, side),
        "photo": photo,
        "token_ids": rows["caption_ids"],
        "identity_input": identity_input,
        "area": augment.valid_area(coordinates, rows["covered"] * side[:, None]),
    }
    fields = {field.name for field in dataclasses.fields(Batch)}
    return Batch(**{name: value for name, value in rows.items() if name in fields} | made)


def stored_batch(model: ModelConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of which nothing has to be computed on the fly."""
    side, latent = model.image_size, model.image_size // model.vae.downsampling
    encoder = model.image_encoder
    tokens = (encoder.image_size // encoder.patch) ** 2 + 1 if encoder else 49
    array = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype)
    return {
        "hints": array((side, side, model.capface.hint_channels), jnp.float32),
        "region": array((side, side, 1), jnp.float32),
        "moments": array((latent, latent, 2 * model.vae.latent_channels), jnp.float16),
        "text": array((model.text.length, model.unet.cross_attention_dim), jnp.float16),
        "image_tokens": array((tokens, model.identity.image_width), jnp.float16),
        "recognition": array((model.identity.recognition_width,), jnp.float32),
        "without_text": array((), bool),
        "without_identity": array((), bool),
        **{feature.name: array(feature.shape, feature.dtype) for feature in schema.TRAINED},
    }


def _arrays(model) -> dict[str, np.ndarray]:
    """The arrays of a head model by number: a plain dict, as frozen trees are."""
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(model))}


def _with_arrays(model, arrays: Mapping[str, Any]):
    """A head model with `_arrays` in place of its own."""
    return jax.tree.unflatten(
        jax.tree.structure(model), [arrays[str(number)] for number in range(len(arrays))]
    )


def _warped(pictures, coordinates, side):
    """8-bit pictures (B, h, h, C) of the stored square, of whatever resolution, at coordinates in
    its pixels; float32 in [0, 1].
    """
    scale = (pictures.shape[1] / side)[:, None, None, None]
    return augment.warp(pictures, (coordinates + 0.5) * scale - 0.5) / 255


def _rendered(batch: Mapping, model: HeadModel, size: int):
    """Hints of the heads as they stand in the changed pictures.

    A head is never mirrored itself: the hints are, so that the mirror image is exact. Rolling and
    moving it before are then mirrored, too."""
    mirror, numbers = batch["change"]["mirror"], batch["head"]
    heads = Head(
        **{name: value for name, value in numbers.items() if name != "albedo"},
        albedo=numbers["albedo"].astype(jnp.float32) / 255,
        residual=jnp.zeros_like(numbers["scale"]),
    )
    if "moments" in batch:  # Mirrored at most: the middle is cut out.
        heads = dataclasses.replace(
            heads,
            translation=heads.translation + (size - heads.size) / 2,
            size=jnp.full_like(heads.size, size),
        )
    else:
        move = jax.vmap(
            lambda head, matrix: transform_head(head, model, matrix, float(size), float(size))
        )
        heads = move(heads, _matrices(batch["change"], heads.size[:, 0], size))
    hints = render_hints_batch(model, heads, size, size)
    signs = jnp.asarray([-1.0] + [1.0] * 8, jnp.float32)
    flipped = hints[:, :, ::-1] * signs[None, None, None]
    return jnp.where(mirror[:, None, None, None], flipped, hints)


def _matrices(change: Mapping, side, size: int):
    """Changes of picture (B, 2, 3), stored pixel → new pixel (see camera), after which a mirroring
    makes what `change` asks for.
    """
    sign = jnp.where(change["mirror"], -1.0, 1.0)
    cos, sin = (
        change["scale"] * jnp.cos(change["angle"]),
        sign * change["scale"] * jnp.sin(change["angle"]),
    )
    x, y = sign * change["shift"][:, 0] * size + size / 2, change["shift"][:, 1] * size + size / 2
    middle = side / 2
    return jnp.stack(
        [
            jnp.stack([cos, -sin, x - (cos - sin) * middle], axis=-1),
            jnp.stack([sin, cos, y - (sin + cos) * middle], axis=-1),
        ],
        axis=-2,
    )


def _stored_hints(pictures, change: Mapping, coordinates, side):
    """Hints of 8-bit pictures (B, 3S, S, 3), see `hints.to_picture`."""
    values = _warped(from_picture(pictures), coordinates, side)
    return unpack_hints(values, lambda normals: augment.turn_normals(normals, change))
