"""What goes to s3:// without a work folder in between, on a stand-in that deletes slowly and lists
for a while what was deleted: checkpoints, compiled programs, records.
"""

import os
import subprocess
import sys

import bucket_servers
import jax
import numpy as np
import pytest
import tiny_recipe
from records_standin import write_standin

from caphuman_jax.errors import DataError
from caphuman_jax.io import files
from caphuman_jax.runtime import sharding
from caphuman_jax.training.checkpoints import Checkpoints
from data_pipeline.records import reader

pytestmark = pytest.mark.slow

LAG = 1.0
"""Seconds that the listings are late."""


@pytest.fixture(scope="module")
def bucket():
    """An fsspec file system of the stand-in, which this process uses too."""
    with pytest.MonkeyPatch.context() as patch, bucket_servers.s3(patch, LAG) as found:
        for name, value in found.items():
            patch.setenv(name, value)
        import s3fs

        yield s3fs.S3FileSystem()


SHAPES = tiny_recipe.recipe().abstract_state()


@pytest.fixture(scope="module")
def placed():
    return sharding.state_shardings(sharding.make_mesh(1, jax.devices()[:1]), SHAPES, "replicated")


@pytest.fixture(scope="module")
def state(placed):
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), SHAPES)
    return sharding.place(drawn, placed)


def save(folder, state, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state, {"samples": step})
    checkpoints.close()


def restore(folder, placed, log=print):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(SHAPES, placed, {}, log)
    finally:
        checkpoints.close()


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params)):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_checkpoints_where_deleted_ones_stay_listed(bucket, state, placed):
    folder = "s3://bucket/kept/checkpoints"
    save(folder, state, 1, 2, 3)
    found, run = restore(folder, placed)
    assert run["step"] == 3
    same(found, state)
    save(folder, state, 4)
    assert restore(folder, placed)[1]["step"] == 4


def test_a_damaged_checkpoint_that_was_moved_is_saved_again(bucket, state, placed):
    folder = "s3://bucket/damaged-run/checkpoints"
    save(folder, state, 1, 2)
    bucket.pipe_file(f"{folder}/2/run/metadata", b"{}")
    lines = []
    checkpoints = Checkpoints(folder)
    _, run = checkpoints.restore(SHAPES, placed, {}, lines.append)
    assert run["step"] == 1 and "step 2" in lines[0] and "is damaged" in lines[0]
    checkpoints.save(2, state, {"samples": 2})  # while the bucket still lists the damaged one
    checkpoints.close()
    found, run = restore(folder, placed)
    assert run["step"] == 2
    same(found, state)


def test_a_checkpoint_that_was_never_finished_is_not_used(bucket, state, placed):
    folder = "s3://bucket/killed/checkpoints"
    save(folder, state, 1, 2)
    bucket.rm_file(f"{folder}/2/commit_success.txt")
    assert restore(folder, placed)[1]["step"] in (1, 2)  # 2 while the file is still listed
    save(folder, state, 3)
    assert restore(folder, placed)[1]["step"] == 3


def test_compiled_programs(bucket):
    program = (
        "import jax, caphuman_jax.runtime.compile_cache as c; c.keep_compiled(); "
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); "
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1); "
        "hits = []; jax.monitoring.register_event_listener("
        "lambda name, **_: hits.append(name) if name.endswith('/cache_hits') else None); "
        "jax.jit(lambda x: x * 3 + 1)(1.0); print(len(hits))"
    )
    environment = {name: v for name, v in os.environ.items() if not name.startswith("JAX_COMP")}
    environment |= {"CAPHUMAN_CACHE": "s3://bucket/cache", "JAX_PLATFORMS": "cpu"}
    run = lambda: int(
        subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True
        ).stdout
    )
    assert run() == 0 and bucket.find("bucket/cache")
    assert run() > 0


def test_what_prepare_does_with_files(bucket):
    folder = "s3://bucket/prepared"
    files.write(f"{folder}/.work-x/plan/plan.json", b"{}")
    files.write(f"{folder}/.work-x/listing", b"abc")
    assert files.read(f"{folder}/.work-x/listing", 1, 2) == b"bc"
    assert files.exists(f"{folder}/.work-x/listing") and not files.exists(f"{folder}/nothing")
    assert files.names(f"{folder}/.work-x", "*") == ["plan.json"]
    assert files.folders(folder, ".work-") == [".work-x"]
    files.remove(f"{folder}/.work-x")
    with pytest.raises(OSError):
        files.read(f"{folder}/.work-x/listing")


def test_records(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path / "cache"))
    here = reader.RecordsFolder(write_standin(tmp_path / "records", 13, test=4, shards=3))
    for path in sorted(here.path.iterdir(), key=lambda path: path.name == "manifest.json"):
        files.write(f"s3://bucket/records/caphuman_records/1.0.0/{path.name}", path.read_bytes())
    there = reader.RecordsFolder("s3://bucket/records")
    assert there.splits == here.splits
    assert there.read("train", range(13)) == here.read("train", range(13))
    rule = reader.held_out_rule("s3://bucket/records")
    assert rule == reader.held_out_rule(here.path) and rule["sha256"]

    lost = next(there.path.glob("*train*"))
    lost.unlink()
    bucket.pipe_file(f"bucket/records/caphuman_records/1.0.0/{lost.name}", b"x" * 9)
    with pytest.raises(DataError, match=f"{lost.name} is damaged"):
        reader.RecordsFolder("s3://bucket/records")
    assert not lost.exists()
