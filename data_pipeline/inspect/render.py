"""Rendering for `inspect`: stored hints against the head, and the contact sheet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.errors import CapHumanError, DataError
from caphuman_jax.runtime.fixed_batches import batches
from data_pipeline.inspect import contact_sheet
from data_pipeline.records import shard_file, tf_example
from data_pipeline.records.schema import Feature

_BATCH = 8  # heads rendered, or moments decoded, at a time
_ALIKE = 3  # levels of 255 that a stored hint may differ from the rendered one
_ALIKE_SHARE = 0.995  # of the pixels: at edges another device may see another triangle


class DatasetRenderer:
    """Renders what records hold.

    Attributes:
        notices: what could not be rendered or compared, and why.
        compare_hints: for `check`; None if there is nothing to compare.
    """

    def __init__(self, folder: Path, manifest: dict, model: str | None):
        self.folder, self.manifest, self.notices = folder, manifest, []
        self.features = tuple(Feature.from_dict(fields) for fields in manifest["features"])
        self.kinds = {f.name: f for f in self.features}
        self.stored = self.kinds["photo"].shape[0]
        self.model = model
        self.head = self._head_name(model or manifest["settings"].get("model"))
        self.compare_hints = (
            CompareHints(self.head, self.features) if self.head and "hints" in self.kinds else None
        )

    def _head_name(self, model):
        """Name of the head model of the records' heads, or None if it is not available."""
        from caphuman_jax.head.models.registry import SHIPPED, load_head
        from caphuman_jax.weights import model_folder

        try:
            name = (
                model_folder.read_config(model_folder.find_model(model)).head if model else SHIPPED
            )
            head = load_head(name)
        except CapHumanError as error:
            self.notices.append(f"heads are not rendered: {error}")
            return None
        albedo = self.kinds["head/albedo"].shape
        if self.kinds["head/identity"].shape[0] != len(head.identity_basis) or (
            len(albedo) == 2 and albedo[0] != len(head.mean)
        ):
            self.notices.append(
                f"heads are not rendered: they are not of the head model {head.name}; name the "
                f"model that made the records with --model"
            )
            return None
        return name

    def contact_sheet(self, path: Path, samples: int) -> list[Path]:
        """Write a sheet of records that are evenly spaced over each split. Returns [path], or [] if
        no record can be read.
        """
        from caphuman_jax.io.images import write_png

        records = list(self._chosen(samples))
        if not records:
            return []
        hints = self._hints(records)
        write_png(path, contact_sheet.sheet(self.features, records, hints, self._decoded(records)))
        return [path]

    def _chosen(self, samples):
        """Decoded records. Damaged ones are left out; `check` names them."""
        splits = self.manifest["splits"]
        total = sum(split["records"] for split in splits.values())
        for split in splits.values():
            share = min(split["records"], max(1, round(samples * split["records"] / max(total, 1))))
            wanted = {int(i) for i in (np.arange(share) + 0.5) / max(share, 1) * split["records"]}
            first = 0
            for facts in split["shards"]:
                for number in sorted(
                    i - first for i in wanted if first <= i < first + facts["records"]
                ):
                    try:
                        message = shard_file.open_file(
                            self.folder / facts["file"], self.manifest["file_format"]
                        ).read(number, number + 1)[0]
                        record = (
                            tf_example.decode(self.features, message)
                            if isinstance(message, bytes)
                            else None
                        )
                        if record:
                            contact_sheet.pixels_of(self.kinds, record)
                            yield record
                    except (OSError, IndexError, DataError):
                        continue
                first += facts["records"]

    def _hints(self, records) -> list[np.ndarray | None]:
        if self.head:
            return [*render(self.head, records, self.stored)]
        if "hints" in self.kinds:
            from caphuman_jax.head.hints import from_picture, unpack_hints

            return [
                np.asarray(
                    unpack_hints(
                        from_picture(tf_example.decode_image(self.kinds["hints"], record["hints"]))
                        / np.float32(255)
                    )
                )
                for record in records
            ]
        return [None] * len(records)

    def _decoded(self, records):
        """The images in the records' moments, if they have some and --model is given."""
        if "moments" not in self.kinds or not self.model:
            if "moments" in self.kinds:
                self.notices.append("stored moments are not decoded: give --model")
            return [None] * len(records)
        moments = np.stack([record["moments"][0] for record in records]).astype(np.float32)
        mean = moments[..., : moments.shape[-1] // 2]
        return list(_decode_latents(self.model, mean))


@dataclasses.dataclass(frozen=True)
class CompareHints:
    """records -> [(number, what is wrong)], for records whose stored hints are not those of their
    head. Can be pickled.
    """

    head: str
    features: Sequence[Feature]

    def __call__(self, records: Sequence[dict]) -> list[tuple[int, str]]:
        from caphuman_jax.head.hints import pack_hints, to_picture

        kind = next(f for f in self.features if f.name == "hints")
        found = []
        for i, rendered in enumerate(render(self.head, records, kind.shape[1])):
            try:
                stored = tf_example.decode_image(kind, records[i]["hints"]).astype(np.int32)
            except DataError:
                continue  # named already
            wanted = to_picture(pack_hints(rendered))
            off = np.any(np.abs(stored - wanted) > _ALIKE, axis=-1)
            seen = np.any(rendered[..., :3] != 0, axis=-1).sum() * 3
            if off.sum() > (1 - _ALIKE_SHARE) * max(seen, 1):
                found.append(
                    (
                        i,
                        f"are not those of the record's head: {int(off.sum())} pixels differ by "
                        f"more than {_ALIKE} levels, the head has {seen}",
                    )
                )
        return found


def render(head: str, records: Sequence[dict], side: int) -> list[np.ndarray]:
    """Hints (side, side, 9) float32 of the records' heads."""
    from caphuman_jax.head.head import stack
    from caphuman_jax.head.hints import render_hints_batch

    model, rendered = _load_head(head), []
    for part, rows in batches(records, _BATCH):
        hints = render_hints_batch(
            model, stack([contact_sheet.head_of(record, side) for record in rows]), side, side
        )
        rendered += list(np.asarray(hints))[: len(part)]
    return rendered


@functools.cache
def _load_head(name):
    from caphuman_jax.head.models.registry import load_head

    return load_head(name)


def _decode_latents(model: str, means: np.ndarray) -> np.ndarray:
    """Pictures (N, s, s, 3) uint8 of unscaled latents (N, h, w, c)."""
    import jax
    from flax import nnx

    from caphuman_jax.models import registry
    from caphuman_jax.weights import model_folder

    path = model_folder.find_model(model)
    config = model_folder.read_config(path)
    graph, shapes = registry.abstract(config, only=["vae"])["vae"]
    if means.shape[-1] != config.vae.latent_channels:
        raise DataError(
            f"the stored moments have {means.shape[-1]} channels, the autoencoder of {model} "
            f"{config.vae.latent_channels}; "
            "name the model that made the records with --model"
        )
    params = model_folder.load_params(path, {"vae": shapes})["vae"]
    decode = jax.jit(lambda latents: nnx.merge(graph, params).decode(latents))
    pictures = np.concatenate([np.asarray(decode(latents[None])) for latents in means])
    return np.round(np.clip(pictures / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
