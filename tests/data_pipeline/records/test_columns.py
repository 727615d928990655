"""Records as columns in memory."""

import json
import shutil
import sys

import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.errors import DataError
from data_pipeline.records.columns import load_records, training_split
from data_pipeline.records.manifest import records_hash
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.records.schema import NAME


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("records") / "some", 7, test=6)


def test_columns_hold_what_the_records_hold(folder):
    records, source = load_records(folder, size=32), RecordsFolder(folder)
    train, test = training_split(records)
    assert (
        train.tolist() == list(range(7))
        and test.tolist() == list(range(7, 13))
        and len(records) == 13
    )
    for number, split, index in ((0, "train", 0), (6, "train", 6), (9, "test", 2)):
        record = source.record(split, index)
        assert records.name[number] == record["key"] and records.attributes[number] == {
            "smile": "slight"
        }
        np.testing.assert_array_equal(
            records.pictures[number], source.pixels("photo", record["photo"])
        )
        np.testing.assert_array_equal(
            records.person[number], source.pixels("person_mask", record["person_mask"])[..., 0]
        )
        np.testing.assert_array_equal(
            records.mobilefacenet[number], record["recognition/mobilefacenet"]
        )
        for name in ("covered", "landmarks", "expression", "face_px"):
            np.testing.assert_array_equal(getattr(records, name)[number], record[name])
        np.testing.assert_array_equal(records.colors[number], record["colours"])
        for name in (
            "identity",
            "expression",
            "rotation",
            "scale",
            "translation",
            "light",
            "residual",
        ):
            np.testing.assert_array_equal(
                getattr(records.heads, name)[number], record[f"head/{name}"]
            )
        np.testing.assert_allclose(
            records.heads.albedo[number] * 255, record["head/albedo"], atol=1e-4
        )
        assert records.heads.size[number].tolist() == [44, 44]
        partners = [p + (7 if split == "test" else 0) if p >= 0 else -1 for p in record["partners"]]
        assert records.partners[number].tolist() == partners
    assert records.partners[3].tolist() == [4, 5, -1] and records.partners[10].tolist() == [
        11,
        12,
        -1,
    ]


def test_partners_are_numbers_among_those_that_are_taken(folder):
    records = load_records(folder)
    some = records.take(np.array([5, 3, 0]))
    assert some.name.tolist() == ["photo-000005", "photo-000003", "photo-000000"] and len(some) == 3
    assert some.partners.tolist() == [[1, -1, -1], [-1, 0, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(some.heads.scale, records.heads.scale[[5, 3, 0]])
    assert len(records.take(~records.test)) == 7 and records.take(records.test).partners.max() == 5


def test_what_cannot_be_trained_on_is_told(folder, tmp_path):
    with pytest.raises(
        DataError, match=r"holds records for 32² pictures, the model is trained on 256².*--size 256"
    ):
        load_records(folder, size=256)
    with pytest.raises(DataError, match="no records there; make them with caphuman prepare"):
        load_records(tmp_path)
    with pytest.raises(DataError, match="has no records to train on"):
        load_records(write_standin(tmp_path / "x", 0, test=2))
    (tmp_path / "records.npz").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"by caphuman precompute, which no longer exists; make the records with caphuman "
        r"prepare",
    ):
        load_records(tmp_path)


def test_a_missing_package_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(
        DataError,
        match="^records are read with the package array_record, which is not installed: pip ",
    ):
        load_records(folder)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("attributes", "{", "attributes is not JSON"),
        ("photo", b"\xff\xd8\xff\xd9", "photo is not an image"),
        ("person_mask", b"", "person_mask is not an image"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, name, value, words):
    place = write_standin(
        tmp_path / "x",
        4,
        shards=1,
        change=lambda record, number: record | ({name: value} if number == 3 else {}),
    )
    with pytest.raises(
        DataError,
        match=rf"{NAME}-train.array_record-00000-of-00001, record 3 \(number 3 of train\): {words}",
    ):
        load_records(place)


def test_records_that_lack_a_column_say_which(folder, tmp_path):
    """Records of an earlier version that has the same number."""
    from data_pipeline.loading.loader import make_loader
    from data_pipeline.records import manifest

    copy = tmp_path / "earlier"
    shutil.copytree(folder, copy)
    file = RecordsFolder(copy).path / manifest.MANIFEST
    content = json.loads(file.read_text())
    for name in ("colours", "covered"):
        content["features"] = [f for f in content["features"] if f["name"] != name]
    file.write_bytes(manifest.to_json(content))
    with pytest.raises(DataError, match="earlier.* lacks colours, covered.*caphuman prepare"):
        load_records(copy)
    with pytest.raises(DataError, match="earlier.* lacks covered.*caphuman prepare"):
        make_loader(copy, batch=2)


def test_the_hash_of_records_is_of_their_files_alone(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    before, after = (records_hash(RecordsFolder(path).manifest) for path in (folder, moved))
    assert before == after and len(before) == 64
    other = write_standin(tmp_path / "other", 7, test=6, seed=1)
    assert records_hash(RecordsFolder(other).manifest) != before
    assert records_hash({}) is None
