"""From written shards to a finished folder: TFDS's metadata, the manifest, and the final rename."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

from caphuman_jax.io import files
from data_pipeline.prepare import plan, workdir
from data_pipeline.records.manifest import DROPPED, MANIFEST, to_json, version_folder
from data_pipeline.records.schema import NAME, VERSION, to_tfds


def finish(job: workdir.Job, listing: workdir.Listing, source: dict) -> dict:
    """Make DIR/caphuman_records/VERSION from a job's shards; may be called again after an
    interruption. Returns the manifest.
    """
    planned = plan.read_plan(job)
    assert planned is not None, "the pipeline writes it"
    shards = [
        json.loads(files.read(job.path("shards", f"{shard['file']}.json")))
        for shard in planned["shards"]
    ]
    splits: dict[str, dict] = {}
    for shard in shards:
        split = splits.setdefault(shard["split"], {"records": 0, "bytes": 0, "shards": []})
        split["records"] += shard["records"]
        split["bytes"] += shard["message_bytes"]
        split["shards"].append(
            {name: shard[name] for name in ("file", "records", "bytes", "sha256")}
        )
    manifest = {
        "format": NAME,
        "version": VERSION,
        "file_format": job.file_format,
        "features": [f.to_dict() for f in job.features()],
        "layout": dataclasses.asdict(job.settings.layout()),
        "settings": job.settings.to_dict(),
        "networks": job.settings.network_hashes(),
        "fingerprint": job.settings.fingerprint(),
        "source": source | {"photos": listing.photos, "sha256": listing.sha256},
        "photos": listing.photos,
        "kept": planned["kept"],
        "moved": planned["moved"],
        "dropped": planned["dropped"],
        "splits": splits,
    }
    metadata = _tfds_metadata(job, splits)
    for name, content in metadata.items():
        files.write(files.join(job.version, name), content)
    files.write(
        files.join(job.version, MANIFEST), to_json(manifest)
    )  # last: in a bucket this is what makes the folder a finished one
    if files.is_local(job.out):
        _into_place(job, {*metadata, MANIFEST, DROPPED, *(shard["file"] for shard in shards)})
    return json.loads(to_json(manifest))


def _tfds_metadata(job: workdir.Job, splits: dict) -> dict[str, bytes]:
    """{name: content} of dataset_info.json, features.json and TFDS's other files. TFDS finds shards
    by their names, so it is given empty ones.
    """
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as folder:
        for split in splits.values():
            for shard in split["shards"]:
                Path(folder, shard["file"]).touch()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=NAME, filetype_suffix=job.file_format
        )
        infos = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[s["records"] for s in split["shards"]],
                num_bytes=split["bytes"],
                filename_template=template.replace(split=name),
            )
            for name, split in splits.items()
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=to_tfds(job.features()),
            split_infos=infos,
            version=VERSION,
            check_data=False,
            description="Photos of faces, measured for the training of CapHuman.",
        )
        return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.json"))}


def _into_place(job: workdir.Job, expected: set[str]) -> None:
    """Rename the folder into its place, without what a killed writer left in it."""
    for path in Path(job.version).iterdir():
        if path.name not in expected:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    place = Path(version_folder(job.out))
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()  # an empty one would be in the way
    os.rename(job.version, place)
