"""Everything that can be wrong with records is found and named by file, record, key and feature."""

import json
import shutil

import numpy as np
import pytest
from records_standin import write_standin

from data_pipeline.inspect import check
from data_pipeline.records import tf_example
from data_pipeline.records.manifest import to_json
from data_pipeline.records.schema import NAME, VERSION, Feature


def version(folder):
    return folder / NAME / VERSION


def manifest(place):
    return json.loads((place / "manifest.json").read_text())


def problems(place, **options):
    return check.check(place, manifest(place), workers=1, **options).problems


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return version(write_standin(tmp_path_factory.mktemp("records") / "some", 20))


@pytest.fixture
def copied(sound, tmp_path):
    """A copy to spoil, and its second file."""
    place = shutil.copytree(sound, tmp_path / "copy")
    return place, place / f"{NAME}-train.array_record-00001-of-00002"


def spoiled(folder, name, value, number=13):
    """A dataset whose record `number` has another entry `name`: value, or what value(old) gives."""

    def change(record, n):
        return record | (
            {name: value(record[name]) if callable(value) else value} if n == number else {}
        )

    return version(write_standin(folder, 20, change=change))


def test_nothing_is_wrong_with_sound_records_and_all_are_counted(sound):
    found = check.check(sound, manifest(sound), workers=1)
    assert (
        found.problems == []
        and found.records == {"train": 20, "test": 0}
        and found.tally.records == 20
    )
    assert (
        sorted(found.people["train"].values()) == [2, 3, 3, 3, 3, 3, 3]
        and found.paired["train"] == 12
    )  # four groups of three of the seven
    assert (
        sum(found.tally.backgrounds.values()) == 20
        and found.tally.words["portrait"] == 20
        and "a" not in found.tally.words
    )
    assert (
        all(counts.sum() == 20 for counts in found.tally.histograms.values())
        and found.tally.light.sum() == 20
    )


def test_several_processes_find_the_same(copied):
    place, file = copied
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    one, two = (check.check(place, manifest(place), workers=n) for n in (1, 2))
    assert (
        one.problems == two.problems
        and len(one.problems) == 2
        and one.people == two.people
        and one.tally.words == two.tally.words
    )


def test_a_changed_byte_is_named_with_its_record(copied):
    place, file = copied
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    whole, one = problems(place)
    assert whole.file == one.file == file.name and whole.number == -1 and "SHA-256" in whole.what
    assert one.number >= 0 and "damaged" in one.what
    assert problems(place, fast=True) == [one]  # which does not hash files


def test_a_file_that_is_cut_off_missing_or_not_named(copied):
    place, file = copied
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert [(p.file, p.number) for p in problems(place)] == [(file.name, -1)] * 2
    assert "cut off" in str(problems(place, fast=True)[0])
    file.unlink()
    (place / f"{NAME}-train.array_record-00002-of-00003").write_bytes(data)
    found = problems(place)
    assert [str(p) for p in found] == [
        f"{file.name}: the file is missing",
        f"{NAME}-train.array_record-00002-of-00003: the manifest does not name this file",
    ]


def test_another_hash_or_another_number_of_records_in_the_manifest(copied):
    place, file = copied
    content = manifest(place)
    content["splits"]["train"]["shards"][1] |= {"sha256": "0" * 64, "records": 11}
    (place / "manifest.json").write_bytes(to_json(content))
    found = [str(p) for p in problems(place)]
    assert (
        len(found) == 3
        and any("holds 10 records, the manifest says 11" in p for p in found)
        and any("SHA-256" in p for p in found)
    )
    assert any("20 records in a split whose shards have 21" in p for p in found)


def nan(array):
    array = array.copy()
    array.flat[1] = np.nan
    return array


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("landmarks", nan, "1 values that are not finite, the first at (0, 1)"),
        ("landmarks", lambda a: a + np.float32(0.5), "landmarks lie outside of the square"),
        ("expression", lambda a: a * 9, "which is not from 0 to 1"),
        ("head/rotation", lambda a: a * np.float32(0.9), "is not a rotation: off by 0.19"),
        ("head/rotation", lambda a: a * np.array([[1, 1, -1]], np.float32), "determinant -1"),
        ("head/scale", np.float32(0), "is not above 0"),
        ("recognition/mobilefacenet", lambda a: a * np.float32(0.5), "has the length 0.5, not 1"),
        ("caption_ids", lambda a: np.minimum(a, 49406), "row 0 has no end token"),
        (
            "caption_ids",
            lambda a: np.roll(a, 1, axis=1),
            "row 0 does not begin with the start token",
        ),
        ("captions", [], "has no caption"),
        ("attributes", "[1]", "is not a JSON object"),
        ("covered", lambda a: a[[2, 1, 0, 3]], "is not a rectangle"),
        ("sha256", "abc", "is not a SHA-256"),
        ("photo", lambda jpeg: jpeg[: len(jpeg) // 2], "is not a whole jpeg file"),
        ("region", b"", "is not a whole png file"),
        ("partners", np.array([13, -1, -1]), "names record 13 of 20, itself"),
        ("partners", np.array([99, -1, -1]), "names record 99 of 20"),
        ("partners", np.array([2, -1, -1]), "names record 2, which does not name it"),
        ("partners", np.array([-2, -1, -1]), "holds -2, which is not from -1 to inf"),
    ],
)
def test_what_is_wrong_with_an_entry(tmp_path, name, value, words):
    found = problems(spoiled(tmp_path / "x", name, value))
    named = [p for p in found if p.feature == name and p.number == 3]
    assert any(words in p.what for p in named), [str(p) for p in found]
    # A partner that is no longer named back is a second problem, at the partner.
    assert all(p.feature == name for p in found) and (name == "partners" or len(found) == 1)
    assert (
        named[0].key == "photo-000013"
        and named[0].file == f"{NAME}-train.array_record-00001-of-00002"
    )


def test_a_partner_who_is_another_person(tmp_path):
    def change(record, number):
        return record | ({"person": "somebody else"} if number == 4 else {})

    found = problems(version(write_standin(tmp_path / "x", 20, change=change)))
    assert {(p.number, p.what) for p in found} >= {
        (3, "names record 4, which shows another person"),
        (4, "names record 3, which shows another person"),
    }


def test_a_picture_of_another_shape_and_an_array_of_another(tmp_path, sound):
    kinds = {f["name"]: Feature.from_dict(f) for f in manifest(sound)["features"]}
    small = tf_example.encode_image(kinds["photo"], np.zeros((40, 44, 3), np.uint8))
    found = problems(spoiled(tmp_path / "x", "photo", small))
    assert [p.what for p in found] == ["is (40, 44, 3), not (44, 44, 3)"] and found[
        0
    ].feature == "photo"
    place = version(write_standin(tmp_path / "y", 4, shards=1))
    content = manifest(place)
    next(f for f in content["features"] if f["name"] == "head/light")["shape"] = [8, 3]
    content["features"].append(Feature("mood", "text").to_dict())
    (place / "manifest.json").write_bytes(to_json(content))
    found = problems(place)
    assert [(p.number, p.feature) for p in found] == [
        (i, name) for i in range(4) for name in ("head/light", "mood")
    ]
    assert found[0].key == "photo-000000" and "(8, 3)" in found[0].what


def test_what_is_no_record_at_all(tmp_path):
    place = version(write_standin(tmp_path / "x", 2, shards=1))
    from array_record.python.array_record_module import ArrayRecordWriter

    file = place / f"{NAME}-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for message in (b"\xff\xff\xff", b""):
        writer.write(message)
    writer.close()
    found = problems(place, fast=True)
    assert {p.number for p in found} == {0, 1} and all(p.file == file.name for p in found)
    assert "not a tf.Example" in found[0].what and {p.feature for p in found if p.number == 1} >= {
        "key",
        "photo",
        "head/scale",
    }


def test_keys_and_people_in_both_splits(tmp_path):
    found = problems(
        version(write_standin(tmp_path / "x", 7, test=2, shards=1))
    )  # whose numbers begin at 0 in each
    keys = [p for p in found if p.feature == "key"]
    assert [(p.number, p.key) for p in keys] == [(i, f"photo-{i:06}") for i in range(2)] and all(
        "is also that of record" in p.what for p in keys
    )
    person = [p for p in found if p.feature == "person"]
    assert len(person) == 1 and "'person-0' is also in the split" in person[0].what


def test_a_key_that_stands_twice(tmp_path):
    found = problems(spoiled(tmp_path / "x", "key", "photo-000002"))
    assert len(found) == 1 and found[0].number == 3 and found[0].key == "photo-000002"
    assert found[0].what == f"is also that of record 2 of {NAME}-train.array_record-00000-of-00002"


def test_looking_stops_where_everything_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ENOUGH", 40)
    place = version(
        write_standin(
            tmp_path / "x", 90, shards=3, change=lambda record, number: record | {"sha256": "no"}
        )
    )
    found = check.check(place, manifest(place), workers=1)
    assert 40 < len(found.problems) <= 80 and sum(found.records.values()) < 90
    place = version(
        write_standin(tmp_path / "y", 90, change=lambda record, number: record | {"key": "same"})
    )
    found = check.check(place, manifest(place), workers=1)
    assert len(found.problems) == 41 and sum(found.records.values()) == 90


def test_tfrecord_files_are_read_too(sound, tmp_path):
    import tensorflow as tf

    from data_pipeline.records import shard_file

    messages = shard_file.open_file(next(sound.glob("*00000-of*")), "array_record").read(0, 10)
    path = tmp_path / "some.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for message in messages:
            writer.write(message)
    read = shard_file.open_file(path, "tfrecord")
    assert read.count == 10 and read.read(2, 5) == messages[2:5]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Exception, match="cut off after byte"):
        shard_file.open_file(path, "tfrecord")
