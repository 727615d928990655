"""Records by number: the same bytes as written, and one clear line for everything that can be wrong
with a folder.
"""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.io import buckets
from data_pipeline.records import staging
from data_pipeline.records.reader import RecordsFolder, held_out_rule
from data_pipeline.records.schema import NAME, VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("records") / "some", 13, test=4, shards=3)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def version(folder):
    return folder / NAME / VERSION


def shard(folder, number=1):
    return version(folder) / f"{NAME}-train.array_record-{number:05}-of-00003"


def test_records_come_by_number_in_any_order(folder):
    records = RecordsFolder(folder)
    assert records.splits == {"train": 13, "test": 4} and records.size == 32
    asked = [12, 0, 5, 5, 4, 9]
    keys = [records.decode(m, {"key"})["key"] for m in records.read("train", asked)]
    assert keys == [f"photo-{i:06}" for i in asked]
    assert [records.place("train", i)[1] for i in (0, 4, 5, 8, 9, 12)] == [0, 4, 0, 3, 0, 3]
    assert RecordsFolder(version(folder)).path == records.path


def test_the_files_are_those_that_array_records_own_source_reads(folder):
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    records = RecordsFolder(folder)
    source = ArrayRecordDataSource([str(file) for file, _ in records.files["train"]])
    assert records.read("train", range(13)) == list(source[i] for i in range(13))


def test_many_threads_and_a_copy_in_another_process_read_the_same(folder):
    records = RecordsFolder(folder)
    one = records.read("train", range(13))
    copy = pickle.loads(pickle.dumps(records))
    with ThreadPoolExecutor(8) as pool:
        rng = np.random.default_rng(0)
        for asked, got in pool.map(
            lambda asked: (asked, copy.read("train", asked)),
            [rng.integers(0, 13, 5) for _ in range(200)],
        ):
            assert got == [one[i] for i in asked]


def test_one_record_decoded_with_its_pictures(folder):
    records = RecordsFolder(folder)
    record = records.record("test", 2, {"photo", "head/identity", "captions"})
    assert set(record) == {"photo", "head/identity", "captions"} and record[
        "head/identity"
    ].shape == (90,)
    assert records.pixels("photo", record["photo"]).shape == (44, 44, 3)


def test_a_damaged_record_is_named_with_its_file(copied):
    data = bytearray(shard(copied).read_bytes())
    data[20_000] ^= 0xFF
    shard(copied).write_bytes(data)
    records = RecordsFolder(copied)
    damaged = []
    for i in range(13):
        try:
            records.read("train", [i])
        except DataError as error:
            damaged.append((i, str(error)))
    assert len(damaged) == 1
    number, line = damaged[0]
    assert f"{shard(copied)}, record {number - 5} is damaged" in line and "\n" not in line
    with pytest.raises(DataError, match=f"record {number - 5} is damaged"):
        records.read("train", range(13))


def test_what_is_no_record_is_named_too(tmp_path):
    def lose(record, number):
        return record | ({"region": record["photo"][:40]} if number == 3 else {})

    records = RecordsFolder(write_standin(tmp_path / "x", 5, shards=1, change=lose))
    with (
        pytest.raises(DataError, match=r"record 3 \(number 3 of train\): region is not an image"),
        records.naming("train", 3),
    ):
        records.pixels("region", records.record("train", 3)["region"])


def test_a_file_cut_off_or_empty_or_missing(copied):
    data = shard(copied).read_bytes()
    for part, line in ((data[: len(data) // 2], "damaged or cut off"), (b"", "damaged or cut off")):
        shard(copied).write_bytes(part)
        with pytest.raises(DataError, match=line):
            RecordsFolder(copied).read("train", [6])
    shard(copied).unlink()
    with pytest.raises(DataError, match="00001-of-00003 is missing"):
        RecordsFolder(copied)


def test_folders_that_are_not_ready(copied, tmp_path):
    with pytest.raises(
        SettingError, match="records can be in gs://, s3:// or on a disk, not in az"
    ):
        RecordsFolder("az://bucket/records")
    with pytest.raises(DataError, match="no records there; make them with caphuman prepare"):
        RecordsFolder(tmp_path / "nowhere")
    file = version(copied) / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"version": "0.9.0"}))
    with pytest.raises(DataError, match="version 0.9.0, this program reads 1.0.0"):
        RecordsFolder(copied)
    file.write_text(json.dumps(content | {"file_format": "tfrecord"}))
    with pytest.raises(DataError, match="holds tfrecord files"):
        RecordsFolder(copied)
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "features"}))
    with pytest.raises(DataError, match="lacks 'features'"):
        RecordsFolder(copied)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        RecordsFolder(copied)
    file.write_text(json.dumps(content))
    version(copied).rename(copied / NAME / "2.0.0")
    with pytest.raises(DataError, match="records of version 2.0.0"):
        RecordsFolder(copied)
    shutil.rmtree(copied / NAME)
    (copied / ".work-abc").mkdir()
    with pytest.raises(DataError, match="unfinished; run the same caphuman prepare again"):
        RecordsFolder(copied)


def test_splits_and_numbers_that_there_are_not(folder):
    records = RecordsFolder(folder)
    with pytest.raises(DataError, match=r"split 'dev'.*test \(4\), train \(13\)"):
        records.count("dev")
    for number in (-1, 13):
        with pytest.raises(DataError, match=f"split 'train' has no record {number};"):
            records.read("train", [number])


@pytest.fixture
def bucket(folder, tmp_path, monkeypatch):
    """fsspec's memory:// in place of a bucket, with the records in it."""
    monkeypatch.setitem(buckets._PACKAGES, "memory", "fsspec")
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/bucket/records", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


def test_records_of_a_bucket_are_copied_once(folder, bucket, monkeypatch):
    here, there = RecordsFolder(folder), RecordsFolder("memory://bucket/records")
    assert there.read("test", range(4)) == here.read("test", range(4))
    rule = held_out_rule("memory://bucket/records")
    assert rule["sha256"] and rule == held_out_rule(folder)
    monkeypatch.setattr(staging, "_fetch", lambda *_: pytest.fail("it is there already"))
    assert RecordsFolder(f"memory://bucket/records/{NAME}/{VERSION}").path == there.path


def test_records_of_a_bucket_that_cannot_be_copied(bucket, monkeypatch, capsys):
    with pytest.raises(DataError, match="no finished records .* --out memory://bucket/nothing"):
        RecordsFolder("memory://bucket/nothing")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match="set CAPHUMAN_CACHE to a larger disk, or mount the bucket"):
        RecordsFolder("memory://bucket/records")
