import json

import pytest

from caphuman_jax.errors import DataError
from data_pipeline.records.manifest import read_manifest, shard_name, to_json, version_folder


def test_shards_are_named_as_tfds_names_them():
    import tensorflow_datasets as tfds

    for file_format in ("array_record", "tfrecord"):
        template = tfds.core.ShardedFileTemplate(
            data_dir="/d",
            dataset_name="caphuman_records",
            split="train",
            filetype_suffix=file_format,
        )
        assert str(template.sharded_filepath(shard_index=3, num_shards=12)) == "/d/" + shard_name(
            "train", 3, 12, file_format
        )


def test_a_manifest_is_read_or_refused(tmp_path):
    assert read_manifest(str(tmp_path)) is None
    folder = tmp_path / "caphuman_records" / "1.0.0"
    assert version_folder(str(tmp_path)) == str(folder)
    folder.mkdir(parents=True)
    manifest = folder / "manifest.json"
    content = {"version": "1.0.0", "format": "caphuman_records", "ä": [1]}
    manifest.write_bytes(to_json(content))
    assert read_manifest(str(tmp_path)) == content and to_json(
        dict(reversed(content.items()))
    ) == to_json(content)
    manifest.write_text(json.dumps(content | {"version": "2.0.0"}))
    with pytest.raises(
        DataError, match="is of caphuman_records 2.0.0, this program writes caphuman_records 1.0.0"
    ):
        read_manifest(str(tmp_path))
    manifest.write_text("{")
    with pytest.raises(DataError, match="manifest.json is damaged"):
        read_manifest(str(tmp_path))
