import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.localfilesystem import LocalFileSystem
from cheap_measurer import CheapMeasurer, CheapSettings, write_photos

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.io import files
from data_pipeline.prepare import beam_pipeline, finalize, plan, workdir
from data_pipeline.prepare.splits import SAME_PERSON
from data_pipeline.records import tf_example
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.sources.open import open_source

BUNDLES = "--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    _make_small(monkeypatch)


def _make_small(patch):
    """Small chunks, listing files and shards, and this process's threads left as they are."""
    patch.setattr(workdir, "CHUNK", 5)
    patch.setattr(workdir, "LINES", 4)
    patch.setattr(plan, "SHARD_BYTES", 100_000)
    patch.setattr(beam_pipeline, "one_thread", lambda: None)


def _job(tmp_path, photos, out="out", settings=None, file_format="array_record"):
    out = out if "://" in out else str(tmp_path / out)
    job = workdir.Job(
        out,
        f"{out}/.work-x",
        str(photos),
        {},
        settings or CheapSettings(hold_out=4),
        file_format,
        CheapMeasurer,
        open_source,
    )
    workdir.write_listing(job.open_source().items(), job.folder)
    return job


def _run(job, *arguments):
    beam_pipeline.run(job, list(arguments))
    return finalize.finish(job, workdir.read_listing(job.folder), {"text": "photos"})


def _contents(job):
    return {
        path.name: path.read_bytes()
        for path in sorted(Path(job.out, "caphuman_records", "1.0.0").iterdir())
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A hundred photos: three in ten of one person, some bad, some there twice."""
    contents = {
        f"{i // 20}/{i:03d}.jpg": b"who:%d:%d" % (i // 10 if i % 10 in (0, 4, 9) else i + 1000, i)
        for i in range(100)
    }
    contents |= {
        "0/003.jpg": b"bad",
        "1/023.jpg": b"stumble",
        "4/099.jpg": contents["0/005.jpg"],
        "2/050.jpg": b"hash:255:a",
        "2/051.jpg": b"hash:252:b",
        "2/052.jpg": b"hash:240:c",
    }
    return write_photos(tmp_path_factory.mktemp("photos"), contents)


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """A finished folder and its manifest."""
    with pytest.MonkeyPatch.context() as patch:
        _make_small(patch)
        job = _job(tmp_path_factory.mktemp("prepared"), photos)
        return job, _run(job)


def test_every_photo_is_a_record_or_named_with_its_reason(prepared, photos):
    job, manifest = prepared
    folder = RecordsFolder(job.out)
    keys = [
        folder.record(split, i, ["key"])["key"]
        for split in folder.splits
        for i in range(folder.splits[split])
    ]
    dropped = [
        json.loads(line) for line in (folder.path / "dropped.jsonl").read_text().splitlines()
    ]
    assert sorted(keys + [d["key"] for d in dropped]) == sorted(
        item.key for item in open_source(photos).items()
    )
    assert [d["key"] for d in dropped] == sorted(d["key"] for d in dropped)
    reasons = {d["key"]: (d["reason"], d["detail"]) for d in dropped}
    assert reasons["0/003.jpg"] == ("no_face", "")
    assert reasons["1/023.jpg"] == ("error", "ValueError: stumbled over 1/023.jpg")
    assert reasons["4/099.jpg"] == ("duplicate", "the same file as 0/005.jpg")
    assert (
        reasons["2/051.jpg"] == ("duplicate", "the same picture as 2/050.jpg, saved again")
        and "2/052.jpg" in keys
    )
    assert manifest["dropped"] == {
        reason: sum(r == reason for r, _ in reasons.values())
        for reason in sorted({r for r, _ in reasons.values()})
    }
    assert (manifest["photos"], manifest["kept"]) == (100, len(keys)) and set(
        manifest["dropped"]
    ) == {"no_face", "error", "duplicate", "held_out_person"}


def test_nobody_is_in_both_splits(prepared):
    folder = RecordsFolder(prepared[0].out)
    vectors = {
        split: np.stack(
            [folder.record(split, i)["recognition/mobilefacenet"] for i in range(count)]
        )
        for split, count in folder.splits.items()
    }
    assert len(vectors["test"]) > 10 and (vectors["train"] @ vectors["test"].T).max() < SAME_PERSON


def test_shards_are_as_the_manifest_says(prepared):
    job, manifest = prepared
    folder = RecordsFolder(job.out)
    assert len(manifest["splits"]["train"]["shards"]) > 2
    for split, content in manifest["splits"].items():
        messages = folder.read(split, range(folder.splits[split]))
        assert (len(messages), sum(map(len, messages))) == (content["records"], content["bytes"])
        assert [file.name for file, _ in folder.files[split]] == [
            shard["file"] for shard in content["shards"]
        ]
        for shard in content["shards"]:
            data = (folder.path / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (
                shard["bytes"],
                shard["sha256"],
            )


def test_the_order_is_mixed_and_does_not_depend_on_the_other_photos(photos, tmp_path):
    together = _job(tmp_path, photos, "all", CheapSettings(hold_out=0))
    some = _job(
        tmp_path,
        write_photos(
            tmp_path / "some", {f"3/{p.name}": p.read_bytes() for p in Path(photos, "3").iterdir()}
        ),
        "some",
        CheapSettings(hold_out=0),
    )
    _run(together), _run(some)
    keys = _keys(together)
    assert keys != sorted(keys) and [key for key in keys if key.startswith("3/")] == _keys(some)
    other = _job(tmp_path, photos, "other", CheapSettings(hold_out=0, seed=1))
    _run(other)
    assert _keys(other) != keys and sorted(_keys(other)) == sorted(keys)


def _keys(job):
    folder = RecordsFolder(job.out)
    return [folder.record("train", i, ["key"])["key"] for i in range(folder.splits["train"])]


def test_another_runner_gives_the_same_bytes(prepared, photos, tmp_path):
    job = _job(tmp_path, photos)
    _run(job, BUNDLES)
    assert _contents(job) == _contents(prepared[0])


def test_partners_show_the_same_person(tmp_path):
    contents = {
        f"{name}/{i}.jpg": b"%s %d" % (name.encode(), i)
        for name, count in (("ann", 5), ("bob", 2), ("cleo", 1))
        for i in range(count)
    }
    job = _job(
        tmp_path, write_photos(tmp_path / "photos", contents), settings=CheapSettings(hold_out=0)
    )
    job = workdir.Job(**{**job.__dict__, "options": {"person": "folder"}})
    workdir.write_listing(job.open_source().items(), job.folder)
    _run(job)
    folder = RecordsFolder(job.out)
    records = [folder.record("train", i, ["person", "partners", "key"]) for i in range(8)]
    for i, record in enumerate(records):
        partners = [p for p in record["partners"].tolist() if p >= 0]
        assert (
            len(partners)
            == {"ann": 3, "bob": 1, "cleo": 0}[record["person"]]
            == len(set(partners) - {i})
        )
        assert all(records[p]["person"] == record["person"] for p in partners)


def test_recognition_can_say_who_is_who(tmp_path):
    contents = {f"{i}.jpg": b"who:%d:%d" % (i % 3, i) for i in range(9)}
    job = _job(
        tmp_path,
        write_photos(tmp_path / "photos", contents),
        settings=CheapSettings(hold_out=0, same_person="recognition"),
    )
    _run(job)
    folder = RecordsFolder(job.out)
    numbers = [int(folder.record("train", i, ["key"])["key"][0]) for i in range(9)]
    for i in range(9):
        partners = folder.record("train", i, ["partners"])["partners"].tolist()
        assert {numbers[p] for p in partners if p >= 0} == {
            j for j in range(9) if j % 3 == numbers[i] % 3
        } - {numbers[i]}


def test_work_that_is_there_is_not_done_again(photos, tmp_path, prepared, monkeypatch):
    job = _job(tmp_path, photos)
    _run(job)
    shard = next(Path(job.out, "caphuman_records", "1.0.0").glob("*train*-00001-of-*"))
    before = _contents(job)
    Path(job.version).parent.mkdir(exist_ok=True)
    Path(job.out, "caphuman_records", "1.0.0").rename(
        job.version
    )  # as if it had been killed before the end
    (Path(job.version) / shard.name).unlink()
    (Path(job.version) / f".{shard.name}.123.part").write_bytes(b"half")
    Path(workdir.chunk_path(job.folder, 3, "index")).unlink()
    measured, written = [], []
    real_measure, real_messages = workdir.measure_chunk, beam_pipeline.shards._messages
    monkeypatch.setattr(
        workdir,
        "measure_chunk",
        lambda items, number, *rest: measured.append(number) or real_measure(items, number, *rest),
    )
    monkeypatch.setattr(
        beam_pipeline.shards,
        "_messages",
        lambda folder, records: written.append(len(records)) or real_messages(folder, records),
    )
    _run(job)
    assert measured == [3] and len(written) == 1 and _contents(job) == before


def test_what_a_worker_finds_wrong_is_told_in_its_words(tmp_path):
    full = _job(
        tmp_path, write_photos(tmp_path / "full", {f"{i}.jpg": b"full" for i in range(9)}), "a"
    )
    with pytest.raises(
        CapHumanError,
        match=f"no space is left for {re.escape(full.out)}; make room and rerun the same command "
        f"to resume",
    ):
        _run(full)
    with pytest.raises(
        CapHumanError, match="none of 9 photos can be used: no_face 9; for one, 0.jpg"
    ):
        _run(
            _job(
                tmp_path,
                write_photos(tmp_path / "bad", {f"{i}.jpg": b"bad" for i in range(9)}),
                "b",
            )
        )
    with pytest.raises(Exception, match="the device is lost"):
        _run(_job(tmp_path, write_photos(tmp_path / "lost", {"0.jpg": b"lost"}), "c"))
    damaged = _job(
        tmp_path, write_photos(tmp_path / "some", {f"{i}.jpg": b"%d" % i for i in range(9)}), "d"
    )
    _run(damaged)
    files.write(workdir.chunk_path(damaged.folder, 0, "records"), b"")
    Path(damaged.out, "caphuman_records", "1.0.0").rename(damaged.version)
    next(Path(damaged.version).glob("*train*")).unlink()
    with pytest.raises(CapHumanError, match="0000000.records is damaged; remove .*0000000.index"):
        _run(damaged)


def test_a_bucket_is_written_through_beams_file_systems(prepared, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(_Bucket, "root", str(tmp_path / "bucket"))
    job = _job(tmp_path, photos, "test-bucket://records")
    manifest = _run(job)
    assert manifest["splits"] == prepared[1]["splits"]
    there = tmp_path / "bucket" / "records" / "caphuman_records" / "1.0.0"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        **_contents(prepared[0]),
        "manifest.json": (there / "manifest.json").read_bytes(),
    }
    files.write(job.path("settings.json"), b"{}")
    assert files.folders(job.out, ".work-") == [".work-x"]
    assert sorted(workdir.measured_chunks(job.folder)) == list(
        range(20)
    ) and "plan.json" in files.names(job.path("plan"))
    files.remove(job.folder)
    assert (
        not [
            path
            for path in (tmp_path / "bucket" / "records" / ".work-x").rglob("*")
            if path.is_file()
        ]
        and (there / "manifest.json").exists()
    )
    with pytest.raises((BeamIOError, OSError, DataError)):
        files.read("test-bucket://records/nothing")


class _Bucket(LocalFileSystem):
    """A scheme of its own over a local folder; as in a bucket, files appear when they are closed,
    and no folder can be renamed.
    """

    root = ""

    @classmethod
    def scheme(cls):
        return "test-bucket"

    def _local(self, path):
        return path.replace("test-bucket:/", self.root)

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def create(self, path, mime_type="application/octet-stream", compression_type="auto"):
        Path(self._local(path)).parent.mkdir(parents=True, exist_ok=True)
        return super().create(self._local(path), mime_type, compression_type)

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return super().open(self._local(path), mime_type, compression_type)

    def exists(self, path):
        return Path(self._local(path)).is_file() if "://" in path else super().exists(path)

    def match(self, patterns, limits=None):
        results = super().match([self._local(pattern) for pattern in patterns], limits)
        for result in results:
            for entry in result.metadata_list:
                entry.path = entry.path.replace(self.root, "test-bucket:/")
        return results

    def delete(self, paths):
        for path in paths:
            Path(self._local(path)).unlink()

    def rename(self, *unused):
        raise AssertionError("buckets do not rename")


def test_options_of_a_job_server_are_passed_on():
    beam_pipeline.check_arguments(["--runner=FlinkRunner", "--known_to_the_server=1"])
    with pytest.raises(SettingError, match="not an option of Apache Beam"):
        beam_pipeline.check_arguments(["--known_to_the_server=1"])


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux")
def test_the_local_runner_listens_on_loopback_only():
    """What the kernel says of the runner's four servers, and of those of a worker's log."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability import local_job_service
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    beam_pipeline._local_runner(PipelineOptions([]))
    server = worker_handlers.GrpcServer(None, None, None)
    log = local_job_service.grpc.server(ThreadPoolExecutor(1))
    ports = {log.add_insecure_port("[::]:0")}
    ports |= {getattr(server, f"{name}_port") for name in ("control", "data", "state", "logging")}
    log.start()
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if int(port, 16) in ports and line.split()[3] == "0A":  # it listens
                found.add((int(port, 16), address))
    log.stop(0)
    server.close()
    loopback = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}
    assert {port for port, _ in found} == ports and {where for _, where in found} <= loopback


def test_a_message_with_partners_is_one_that_tensorflow_reads(prepared):
    import tensorflow as tf

    folder = RecordsFolder(prepared[0].out)
    message = folder.read("train", [0])[0]
    parsed = tf.io.parse_single_example(
        message,
        {
            "partners": tf.io.FixedLenFeature(3, tf.int64),
            "key": tf.io.FixedLenFeature((), tf.string),
        },
    )
    ours = tf_example.decode(folder.features, message)
    assert (
        parsed["partners"].numpy().tolist() == ours["partners"].tolist()
        and parsed["key"].numpy().decode() == ours["key"]
    )
    assert set(tf.train.Example.FromString(message).features.feature) == {
        f.name for f in folder.features
    }
