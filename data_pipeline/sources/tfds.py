"""Photos of a TensorFlow dataset: `tfds:NAME[:SPLIT]`, NAME as `tfds.load` takes it, or the folder
of a prepared dataset.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

from caphuman_jax.errors import DataError
from data_pipeline.sources import base
from data_pipeline.sources.base import CAPTION_NAMES, PERSON_NAMES, Item, Source

_BLOCK = 64  # examples read at a time


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
    """The images of a prepared dataset, encoded as they are stored. Keys are SPLIT/NUMBER. Captions
    and persons are features with those names.

    Attributes:
        text: "tfds:NAME" for all splits, "tfds:NAME:SPLIT" for one.
    """

    text: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        name, split = _parts(self.text)
        builder = _builder(name)
        if split and split not in builder.info.splits:
            raise DataError(f"{name} has no split {split}; it has {', '.join(builder.info.splits)}")
        described = [f for f in builder.info.features if f in (*CAPTION_NAMES, *PERSON_NAMES)]
        for one in [split] if split else sorted(builder.info.splits):
            count = builder.info.splits[one].num_examples
            rows = _read(builder, one, described) if described else itertools.repeat({}, count)
            for number, row in enumerate(rows):
                yield base.described(
                    f"{one}/{number:09d}",
                    (one, number),
                    {f: _text(value) for f, value in row.items()},
                )

    def _read(self, item: Item) -> bytes:
        split, number = item.place
        block = _block(_parts(self.text)[0], split, number // _BLOCK)
        if number % _BLOCK >= len(block):
            raise DataError(f"{item.key}: the dataset ends before it")
        return block[number % _BLOCK]


def _parts(text: str) -> tuple[str, str]:
    """Name and split, "" for all. What follows the last colon is a split unless it has a slash."""
    name, colon, split = text.removeprefix("tfds:").rpartition(":")
    return (name, split) if colon and "/" not in split else (text.removeprefix("tfds:"), "")


@functools.cache
def _builder(name: str):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"tfds:{name} needs the package tensorflow-datasets; install caphuman_jax[data]"
        ) from error
    try:
        return (
            tfds.builder_from_directory(name)
            if os.path.isdir(os.path.expanduser(name))
            else tfds.builder(name)
        )
    except Exception as error:  # there are many kinds without a common base
        raise DataError(
            f"tfds:{name} cannot be opened ({str(error).strip().splitlines()[0]}); prepare it with "
            f"tfds first"
        ) from error


def _image(builder) -> str:
    import tensorflow_datasets as tfds

    images = [
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    ]
    if not images:
        raise DataError(
            f"{builder.name} has no image feature; it has {', '.join(builder.info.features)}"
        )
    return "image" if "image" in images else images[0]


def _read(builder, split: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """The features `wanted` of the examples of a split or a slice of one, in stored order; images
    stay encoded.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    skip = {
        name: tfds.decode.SkipDecoding()
        for name in wanted
        if isinstance(features[name], tfds.features.Image)
    }
    decoders = tfds.decode.PartialDecoding({name: features[name] for name in wanted}, decoders=skip)
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        dataset = builder.as_dataset(
            split=split, shuffle_files=False, decoders=decoders, read_config=config
        )
        yield from tfds.as_numpy(dataset)
    except Exception as error:  # TensorFlow has many kinds
        raise DataError(
            f"tfds:{builder.name}, {split}: {str(error).strip().splitlines()[0]}"
        ) from error


@functools.lru_cache(maxsize=4)
def _block(name: str, split: str, number: int) -> list[bytes]:
    builder = _builder(name)
    image = _image(builder)
    last = min((number + 1) * _BLOCK, builder.info.splits[split].num_examples)
    return [row[image] for row in _read(builder, f"{split}[{number * _BLOCK}:{last}]", [image])]


def _text(value: Any) -> Any:
    """bytes → str, also in arrays of them."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_text(v) for v in value.tolist()] if hasattr(value, "tolist") and value.shape else value
