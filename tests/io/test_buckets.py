"""Work folders in buckets: fsspec's memory:// stands in for one."""

import fsspec
import pytest
from etils import epath
from etils.epath import backend, gpath

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.io import buckets


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True) if system.exists("/bucket") else None


def all_files(name):
    return True


def test_a_folder_is_copied_and_comes_back(tmp_path, bucket):
    mirror = buckets.Mirror("memory://bucket/run", tmp_path / "a", all_files)
    (tmp_path / "a" / "autoencoder" / "model").mkdir(parents=True)
    (tmp_path / "a" / "metrics.jsonl").write_text("1\n")
    (tmp_path / "a" / "autoencoder" / "model" / "w").write_bytes(b"\0" * 10)
    (tmp_path / "a" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "5" / "data").write_text("written by Orbax itself")
    (tmp_path / "a" / ".lock").write_text("")
    mirror.push()
    assert {path.removeprefix("/bucket/run/") for path in bucket.find("/bucket/run")} == {
        "metrics.jsonl",
        "autoencoder/model/w",
    }
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write("2\n")
    mirror.push()
    other = buckets.Mirror("memory://bucket/run", tmp_path / "b", all_files)
    other.pull()
    assert (tmp_path / "b" / "metrics.jsonl").read_text() == "1\n2\n"
    assert (tmp_path / "b" / "autoencoder" / "model" / "w").read_bytes() == b"\0" * 10


def test_only_what_changes_is_copied_and_only_by_who_keeps_it(tmp_path, bucket, monkeypatch):
    (tmp_path / "mine").write_text("1")
    (tmp_path / "other").write_text("1")
    mirror = buckets.Mirror("memory://bucket/run", tmp_path, lambda name: name == "mine")
    mirror.push()
    written = []
    monkeypatch.setattr(mirror._system, "pipe_file", lambda path, data: written.append(path))
    mirror.push()
    assert written == [] and bucket.ls("/bucket/run", detail=False) == ["/bucket/run/mine"]


def test_a_bucket_that_cannot_be_written(tmp_path, bucket, monkeypatch):
    (tmp_path / "file").write_text("1")
    mirror = buckets.Mirror("memory://bucket/run", tmp_path, all_files)

    def refuse(path, data):
        raise RuntimeError("403 Forbidden")

    monkeypatch.setattr(mirror._system, "pipe_file", refuse)
    with pytest.raises(DataError, match="bucket/run/file cannot be written: 403 Forbidden"):
        mirror.push()


@pytest.mark.parametrize(
    "path, words",
    [
        ("az://bucket/run", "work folders can be in gs://, s3:// or on a disk, not in az"),
        ("memory://bucket/run", "not in memory"),
        ("gs:/bucket/run", "written with two slashes, gs://"),
    ],
)
def test_urls_that_cannot_be_used(path, words):
    with pytest.raises(SettingError, match=words):
        buckets.check(path)


def test_ordinary_folders_and_file_urls(tmp_path):
    for path in (str(tmp_path / "run"), f"file://{tmp_path / 'run'}"):
        with buckets.local_folder(path, all_files) as (folder, mirror):
            assert folder == tmp_path / "run" and mirror is None
    assert buckets.url_of(tmp_path / "run") is None


def test_folders_of_a_stand_in_know_their_url(tmp_path):
    (tmp_path / buckets.MARK).write_text("gs://bucket/run")
    assert buckets.url_of(tmp_path) == "gs://bucket/run"
    assert buckets.url_of(tmp_path / "autoencoder") == "gs://bucket/run/autoencoder"


def test_a_folder_is_moved(bucket):
    bucket.pipe_file("/bucket/run/checkpoints/2/a/b", b"1")
    buckets.move("memory://bucket/run/checkpoints/2", "memory://bucket/run/damaged/2")
    assert bucket.find("/bucket/run") == ["/bucket/run/damaged/2/a/b"]


def test_tensorflow_does_not_read_buckets(monkeypatch):
    """Also where a local path was looked at first."""
    monkeypatch.setenv("EPATH_USE_TF", "1")  # so that it is as before afterwards
    monkeypatch.delenv("EPATH_USE_TF")
    gpath._is_tf_installed.cache_clear()
    assert epath.Path("/").exists() and gpath._is_tf_installed()
    buckets.check("s3://bucket/run")
    assert epath.Path("s3://bucket/run")._backend is backend.fsspec_backend
