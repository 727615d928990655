import numpy as np
import pytest
from cheap_measurer import CheapMeasurer, CheapSettings, write_photos

from caphuman_jax.errors import DataError
from data_pipeline.prepare import beam_pipeline, finalize, workdir
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.sources.open import open_source

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings(
    "ignore:label\\(\\) is deprecated:DeprecationWarning"
)  # protobuf's, in tfds


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same records as array_record and as tfrecord files, by format."""
    root = tmp_path_factory.mktemp("records")
    photos = write_photos(root / "photos", {f"{i:03d}.jpg": b"photo %d" % i for i in range(60)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam_pipeline, "one_thread", lambda: None)
        patch.setattr("data_pipeline.prepare.plan.SHARD_BYTES", 100_000)
        for file_format in ("array_record", "tfrecord"):
            out = str(root / file_format)
            job = workdir.Job(
                out,
                f"{out}/.work-x",
                photos,
                {},
                CheapSettings(hold_out=4),
                file_format,
                CheapMeasurer,
                open_source,
            )
            workdir.write_listing(job.open_source().items(), job.folder)
            beam_pipeline.run(job, [])
            finalize.finish(job, workdir.read_listing(job.folder), {})
    import data_pipeline.records.tfds_builder  # noqa: F401  registers the dataset

    return {name: str(root / name) for name in ("array_record", "tfrecord")}


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_loads_what_was_written(folders, file_format):
    ours = RecordsFolder(folders["array_record"])
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    for split, count in ours.splits.items():
        rows = list(
            tfds.as_numpy(
                tfds.load(
                    "caphuman_records",
                    data_dir=folders[file_format],
                    split=split,
                    read_config=config,
                )
            )
        )
        assert len(rows) == count > 9
        for i, row in enumerate(rows):
            record = ours.record(split, i)
            assert (
                row["key"].decode() == record["key"]
                and [text.decode() for text in row["captions"]] == record["captions"]
            )
            for name in (
                "landmarks",
                "head/light",
                "head/albedo",
                "caption_ids",
                "partners",
                "recognition/mobilefacenet",
            ):
                value = row
                for part in name.split("/"):
                    value = value[part]
                np.testing.assert_array_equal(value, record[name], err_msg=name)
                assert value.dtype == record[name].dtype
            np.testing.assert_array_equal(row["photo"], ours.pixels("photo", record["photo"]))


def test_a_data_source_and_the_dataset_hold_the_same(folders):
    source = tfds.data_source("caphuman_records", data_dir=folders["array_record"], split="train")
    rows = list(
        tfds.as_numpy(
            tfds.load("caphuman_records", data_dir=folders["array_record"], split="train")
        )
    )
    assert [source[i]["key"] for i in range(len(source))] == [row["key"] for row in rows]


def test_parts_of_splits_partial_decoding_shuffling_and_hosts(folders):
    def keys(split, **options):
        decoders = tfds.decode.PartialDecoding({"key": tfds.features.Text()})
        return [
            row["key"]
            for row in tfds.as_numpy(
                tfds.load(
                    "caphuman_records",
                    data_dir=folders["array_record"],
                    split=split,
                    decoders=decoders,
                    **options,
                )
            )
        ]

    every = keys("train")
    assert (
        keys("train[5:12]") == every[5:12] and keys("train[50%:]") == every[round(len(every) / 2) :]
    )
    config = tfds.ReadConfig(shuffle_seed=3)
    mixed = keys("train", shuffle_files=True, read_config=config)
    assert (
        mixed != every
        and sorted(mixed) == sorted(every)
        and keys("train", shuffle_files=True, read_config=config) == mixed
    )
    shares = [
        keys(
            "train", read_config=tfds.ReadConfig(input_context=tf.distribute.InputContext(2, host))
        )
        for host in (0, 1)
    ]
    assert shares == [every[::2], every[1::2]]


def test_the_datasets_own_facts(folders):
    for name, folder in folders.items():
        builder = tfds.builder("caphuman_records", data_dir=folder)
        assert (
            type(builder).__name__ == "CaphumanRecords"
            and builder.info.file_format.value == name
            and str(builder.version) == "1.0.0"
        )
        ours = RecordsFolder(folders["array_record"])
        assert {
            split: info.num_examples for split, info in builder.info.splits.items()
        } == ours.splits
        assert builder.info.dataset_size == sum(
            split["bytes"] for split in ours.manifest["splits"].values()
        )
        assert builder.info.features["photo"].shape == (20, 20, 3)


def test_records_that_are_not_there_are_made_by_prepare(tmp_path, folders):
    with pytest.raises(
        DataError, match="no records in .*; make them with: caphuman prepare --photos PHOTOS --out "
    ):
        tfds.load("caphuman_records", data_dir=tmp_path, split="train")
    assert not list(tmp_path.iterdir())
