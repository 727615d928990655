"""The records as a TFDS dataset: after `import data_pipeline.records.tfds_builder`,
`tfds.load("caphuman_records", data_dir=DIR, split="train")`.

Plain TFDS reads array_record files only through `tfds.data_source`; with this builder `tfds.load`
reads them too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_parser

from caphuman_jax.errors import DataError
from data_pipeline.records import schema as records

_READ_TOGETHER = 16  # records


class CaphumanRecords(tfds.core.GeneratorBasedBuilder):
    """The records of `caphuman prepare`, in array_record or tfrecord files; the features are read
    from their folder.
    """

    VERSION = tfds.core.Version(records.VERSION)
    RELEASE_NOTES = {"1.0.0": "Photos of faces with what was measured in them; see docs/data.md."}

    def _info(self) -> tfds.core.DatasetInfo:
        there = (self.data_path / "features.json").exists()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photos of faces, measured for the training of CapHuman.",
            features=tfds.features.FeatureConnector.from_config(self.data_dir) if there else None,
        )

    def download_and_prepare(self, **unused) -> None:
        """Do nothing if the records exist. Raises DataError otherwise."""
        if not self.is_prepared():
            raise DataError(
                f"there are no records in {self._data_dir_root}; make them with: caphuman prepare "
                f"--photos PHOTOS --out {self._data_dir_root}"
            )

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        raise NotImplementedError("caphuman prepare writes the records")

    def _generate_examples(self):
        raise NotImplementedError("caphuman prepare writes the records")

    def _as_dataset(
        self, split, decoders=None, read_config=None, shuffle_files=False
    ) -> tf.data.Dataset:
        """TFDS's own method, extended to array_record files, where `shuffle_files` shuffles the
        records of all files again in each epoch.
        """
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            return super()._as_dataset(
                split, decoders=decoders, read_config=read_config, shuffle_files=shuffle_files
            )
        config, features = read_config or tfds.ReadConfig(), self.info.features
        if isinstance(decoders, tfds.decode.PartialDecoding):
            features, decoders = decoders.extract_features(features), decoders.decoders
        source = self.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

        def read(numbers):
            return tf.numpy_function(
                lambda n: np.array(source.__getitems__(n.tolist()), object),
                [numbers],
                tf.string,
                stateful=False,
            )

        def decode(message):
            return features.decode_example(parser.parse_example(message), decoders=decoders)

        parser = example_parser.ExampleParser(features.get_serialized_info())
        numbers = tf.data.Dataset.range(len(source))
        if config.input_context:
            numbers = numbers.shard(
                config.input_context.num_input_pipelines, config.input_context.input_pipeline_id
            )
        if shuffle_files:
            numbers = numbers.shuffle(
                max(len(source), 1),
                seed=config.shuffle_seed,
                reshuffle_each_iteration=config.shuffle_reshuffle_each_iteration,
            )
        messages = (
            numbers.batch(_READ_TOGETHER)
            .map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .unbatch()
        )
        messages = messages.map(functools.partial(tf.ensure_shape, shape=()))
        return messages.map(
            decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).with_options(config.options)
