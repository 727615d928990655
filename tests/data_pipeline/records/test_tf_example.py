"""Records to bytes and back, beside what TensorFlow and TFDS make of the same bytes."""

import dataclasses

import numpy as np
import pytest

from caphuman_jax.errors import DataError
from data_pipeline.records import tf_example
from data_pipeline.records.schema import Feature, Layout, features, to_tfds

LAYOUT = Layout(
    size=16,
    stored=22,
    identity=5,
    expression=52,
    albedo=(9, 3),
    identity_side=16,
    captions=2,
    recognizer="facenet",
    hints=True,
    moments=(2, 2, 8),
    text=4,
    image_tokens=(3, 5),
)


@pytest.fixture(scope="module")
def record():
    """Random numbers in every feature, a NaN among them, and a second caption that is not ASCII."""
    rng = np.random.default_rng(0)
    made = {}
    for f in features(LAYOUT):
        if f.kind == "image":
            made[f.name] = tf_example.encode_image(
                f, rng.integers(0, 256, f.shape).astype(np.uint8)
            )
        elif f.kind == "array":
            made[f.name] = (
                rng.normal(size=f.shape) * 50
                if f.dtype.startswith("f")
                else rng.integers(0, 200, f.shape)
            ).astype(f.dtype)
        else:
            made[f.name] = ["a photo", "größer"] if f.kind == "texts" else f.name + " text"
    made["partners"] = np.array([3, -1, 2**40])
    made["colours"][1, 2] = np.nan
    return made


def same(a, b):
    return (
        a == b
        if isinstance(a, (str, bytes, list))
        else np.array_equal(a, b, equal_nan=a.dtype.kind == "f") and a.dtype == b.dtype
    )


def test_a_record_comes_back_as_it_was(record):
    message = tf_example.encode(features(LAYOUT), record)
    assert message == tf_example.encode(features(LAYOUT)[::-1], dict(reversed(record.items())))
    back = tf_example.decode(features(LAYOUT), message)
    assert back.keys() == record.keys() and all(same(record[k], back[k]) for k in record)
    assert tf_example.decode(features(LAYOUT), message, only={"key"}) == {"key": "key text"}


@pytest.mark.filterwarnings("ignore")
def test_tfds_reads_the_same(record):
    spec = to_tfds(features(LAYOUT))
    found = spec.deserialize_example_np(tf_example.encode(features(LAYOUT), record))
    tensors = spec.deserialize_example(tf_example.encode(features(LAYOUT), record))
    for f in features(LAYOUT):
        value, tensor = found, tensors
        for part in f.name.split("/"):
            value, tensor = value[part], tensor[part]
        if f.kind == "array":
            assert same(record[f.name], np.asarray(value, f.dtype)), (
                f.name
            )  # of single numbers TFDS makes Python ones
            assert same(record[f.name], tensor.numpy()), f.name
        elif f.encoding == "png":
            assert same(tf_example.decode_image(f, record[f.name]), np.asarray(value)), f.name
        elif f.kind == "text":
            assert value.decode() == record[f.name]
    assert [text.decode() for text in tensors["captions"].numpy()] == record["captions"]


@pytest.mark.filterwarnings("ignore")
def test_what_tfds_writes_is_read(record):
    pixels = {
        f.name: tf_example.decode_image(f, record[f.name])
        for f in features(LAYOUT)
        if f.encoding == "png"
    }
    nested = {}
    for name, value in (record | pixels).items():
        *above, last = name.split("/")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = (
            tf_example.decode_image(next(f for f in features(LAYOUT) if f.name == name), value)
            if isinstance(value, bytes)
            else value
        )
    back = tf_example.decode(features(LAYOUT), to_tfds(features(LAYOUT)).serialize_example(nested))
    for f in features(LAYOUT):
        if f.kind != "image":
            assert same(record[f.name], back[f.name]), f.name
        elif f.encoding == "png":
            assert same(pixels[f.name], tf_example.decode_image(f, back[f.name])), f.name


def test_damage_is_named(record):
    known = features(LAYOUT)
    message = tf_example.encode(known, record)
    with pytest.raises(DataError, match="ends too early"):
        tf_example.decode(known, message[:-3])
    with pytest.raises(DataError, match="has no other"):
        tf_example.decode([*known, Feature("other", "text")], message)
    narrower = [dataclasses.replace(f, shape=(2, 2)) if f.name == "covered" else f for f in known]
    assert tf_example.decode(narrower, message)["covered"].shape == (2, 2)
    with pytest.raises(DataError, match=r"covered does not hold float32 \(5,\)"):
        tf_example.decode(
            [dataclasses.replace(f, shape=(5,)) if f.name == "covered" else f for f in known],
            message,
        )
    with pytest.raises(DataError, match="head/scale holds another kind"):
        tf_example.decode(
            [dataclasses.replace(f, kind="text") if f.name == "head/scale" else f for f in known],
            message,
        )
    with pytest.raises(DataError, match=r"covered is float32 \(3,\), not float32 \(4,\)"):
        tf_example.encode(known, record | {"covered": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match=r"lacks \['key'\]"):
        tf_example.encode(known, {k: v for k, v in record.items() if k != "key"})
    photo = next(f for f in known if f.name == "photo")
    with pytest.raises(DataError, match="photo is not an image"):
        tf_example.decode_image(photo, b"not a picture")


def test_features_survive_json():
    assert tuple(Feature.from_dict(f.to_dict()) for f in features(LAYOUT)) == features(LAYOUT)
