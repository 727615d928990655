"""A training that is resumed on another base is refused before anything is submitted."""

import jax
import pytest
import tiny_recipe

from caphuman_jax.cli import app
from caphuman_jax.io.metadata import checksums
from caphuman_jax.launch import clusters, job, resumed_base, room
from caphuman_jax.runtime import sharding
from caphuman_jax.training.checkpoints import Checkpoints


@pytest.fixture
def saved(tmp_path, tiny_folder):
    """Saves a checkpoint of a run on the tiny model in tmp_path/run, with some hashes replaced."""

    def save(step, **others):
        shapes = tiny_recipe.recipe().abstract_state()
        mesh = sharding.make_mesh(1, jax.devices()[:1])
        zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
        state = sharding.place(zeros, sharding.state_shardings(mesh, shapes, "replicated"))
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
        hashes = checksums(tiny_folder)
        run = {"samples": 0, "frozen": {"unet": hashes["unet"], "vae": hashes["vae"], **others}}
        checkpoints.save(step, state, run)
        checkpoints.close()

    return save


@pytest.fixture
def launch(tmp_path, tiny_folder, monkeypatch, capsys):
    """(exit code, what is printed) of a launch of that run."""
    monkeypatch.setattr(clusters, "run", lambda commands: 0)
    monkeypatch.setattr(room, "check", lambda job: None)

    def run(*options, on="slurm", base=tiny_folder, workdir=tmp_path / "run"):
        words = ["launch", "--on", on, "--run", *options, "--", "train"]
        words += ["--config", "sd15", f"--config.base={base}", "--workdir", str(workdir)]
        code = app.main(words)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_another_base_than_that_of_the_checkpoint(saved, launch, tmp_path, tiny_folder):
    assert launch() == (0, ""), "nothing was trained yet"
    saved(3)
    assert launch() == (0, "")
    saved(5, vae="0" * 64)
    code, said = launch()
    assert code == 2 and said.count("\n") == 1
    assert "checkpoint of step 5" in said and f"another base than {tiny_folder}: vae differ" in said
    mounts = f"{tmp_path}:/runs,{tiny_folder.parent}:/models:ro"
    inside = {"base": "/models/tiny", "workdir": "/runs/run"}
    assert launch("--mounts", mounts, "--image", "i", on="docker", **inside)[0] == 2
    assert launch("--image", "i", on="docker", **inside) == (0, ""), "not seen from here"
    assert launch("--resume")[0] == 2
    (tmp_path / "run/checkpoints/5/run/metadata").write_text("{")
    assert launch() == (0, ""), "the hosts go back to the one before it"


@pytest.mark.parametrize(
    "on, path, found",
    [
        ("slurm", "/data/run", "/data/run"),
        ("slurm", "run", None),
        ("slurm", "s3://b/run", "s3://b/run"),
        ("gke", "/data/run", "gs://bucket/run"),
        ("tpu-vm", "/elsewhere/run", None),
        ("docker", "/data/run", "/data/run"),
    ],
)
def test_where_this_machine_finds_a_path_of_the_hosts(on, path, found):
    pytest.importorskip("gcsfs")
    pytest.importorskip("s3fs")
    place = resumed_base.place(job.Job(on=on, bucket="bucket"), path)
    assert place is None if found is None else str(place) == found
