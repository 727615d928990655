"""Batches by tf.data: TensorFlow's operations parse the messages and decode the images, in its own
threads, outside of Python.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data_pipeline.loading.batch_maker import PARTS, BatchMaker
from data_pipeline.records.schema import Feature


def batches(maker: BatchMaker, steps: int, prefetch: int, processes: int = 0) -> Iterator[dict]:
    """Batches 0 … steps - 1 of `maker`, `prefetch` of them made in advance, in threads only."""
    with contextlib.suppress(RuntimeError):  # TensorFlow has been used before
        tf.config.set_visible_devices([], "GPU")
    decoded = _dataset(maker, steps, prefetch).as_numpy_iterator()
    for step in range(steps):
        try:
            values = next(decoded)
        except tf.errors.OpError:
            maker.make(step)  # says in one line which record is damaged
            raise
        yield maker.batch(maker.plan(step), values)


def _dataset(maker: BatchMaker, steps: int, prefetch: int) -> tf.data.Dataset:
    """Decoded features by name, one batch after another."""
    rows, content = maker.share.local, maker.content
    selected = [name for name in content.own_features if name in PARTS]
    own, identity = (
        [maker.records.known_feature(name) for name in names]
        for names in (content.own_features, content.identity_features)
    )

    def fetch(step):
        plan = maker.plan(int(step))
        messages = maker.each(lambda row: maker.messages(plan, row)[:2], rows)
        return (
            np.array([own for own, _ in messages], object),
            np.array([own if other is None else other for own, other in messages], object),
            *(maker.part(plan, name) for name in selected),
        )

    def fetched(step):
        values = tf.numpy_function(
            fetch, [step], (tf.string, tf.string, *[tf.int64] * len(selected)), stateful=False
        )
        return tuple(tf.ensure_shape(value, (rows,)) for value in values)

    def decode(own_messages, identity_messages, *parts):
        part, values = dict(zip(selected, parts)), {}
        for features, messages in ((own, own_messages), (identity, identity_messages)):
            entries = tf.io.parse_example(messages, {f.name: _kind(f) for f in features})
            values |= {
                f.name: _decode(f, entries[f.name], part.get(f.name), rows) for f in features
            }
        return values

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = maker.workers
    parallel = max(1, min(prefetch, maker.workers))
    dataset = (
        tf.data.Dataset.range(steps)
        .map(fetched, num_parallel_calls=2)
        .map(decode, num_parallel_calls=parallel)
    )
    return dataset.prefetch(prefetch).with_options(options)


def _kind(feature: Feature):
    """What parse_example looks for."""
    if feature.kind == "array" and not feature.encoding:
        return tf.io.FixedLenFeature(
            feature.shape, tf.float32 if feature.dtype == "float32" else tf.int64
        )
    return tf.io.FixedLenFeature((), tf.string)


def _decode(feature: Feature, value, part, rows: int):
    """A batch of one feature's values; with `part` (rows,), only that part of each row along its
    first axis.
    """
    shape = feature.shape
    if feature.kind == "image":
        # INTEGER_ACCURATE is what OpenCV's decoder does; the fast transforms differ in the last
        # bit.
        one = (
            (lambda x: tf.io.decode_png(x, shape[-1]))
            if feature.encoding == "png"
            else (lambda x: tf.io.decode_jpeg(x, shape[-1], dct_method="INTEGER_ACCURATE"))
        )
        # One operation an image, so that a batch's images are decoded in parallel.
        return tf.stack(
            [tf.ensure_shape(one(encoded), shape) for encoded in tf.unstack(value, rows)]
        )
    if not feature.encoding:
        return value
    if feature.encoding == "zlib":
        value = tf.io.decode_compressed(value, "ZLIB")
    if part is not None:
        shape = shape[1:]
        size = math.prod(shape) * np.dtype(feature.dtype).itemsize
        value = tf.strings.substr(value, part * size, tf.fill((rows,), np.int64(size)))
    return tf.reshape(tf.io.decode_raw(value, tf.dtypes.as_dtype(feature.dtype)), (rows, *shape))
