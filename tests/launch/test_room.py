"""What does not fit is refused before anything is submitted."""

import json

import pytest

from caphuman_jax.cli import app
from caphuman_jax.launch import clusters, room

GIB = 2**30
SHOWN = {
    "batch_size": 128,
    "devices": 32,
    "memory": {"device": {"params": 2 * GIB, "opt": 3 * GIB}, "checkpoint": 7 * GIB},
}


@pytest.fixture
def launch(monkeypatch, capsys):
    """(exit code, what is printed) of a launch on Slurm; `shown` is what the configuration says."""

    def run(*options, on="slurm", shown=SHOWN):
        monkeypatch.setattr(room, "_config", lambda *_: shown)
        monkeypatch.setattr(clusters, "run", lambda commands: 0)
        words = ["launch", "--on", on, "--run", "--nodes", "4", "--devices", "8", *options]
        code = app.main([*words, "--", "train", "--config", "sd15", "--workdir", "/data/runs/1"])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.parametrize(
    "accelerator, kind",
    [
        ("nvidia-h100-80gb", "H100"),
        ("nvidia-h200-141gb", "H200"),
        ("nvidia-tesla-a100", "A100"),
        ("nvidia-a100-80gb", "A100-SXM4-80GB"),
        ("nvidia-l4", "L4"),
        ("tpu-v5-lite-podslice", "TPU v5 lite"),
        ("v5litepod-16", "TPU v5 lite"),
        ("tpu-v5p-slice", "TPU v5"),
        ("v6e-16", "TPU v6"),
        ("mine", ""),
    ],
)
def test_accelerators_are_known_by_their_names(accelerator, kind):
    assert room.device_kind(accelerator) == kind


def test_a_state_that_is_larger_than_a_device(launch):
    large = {"device": {"params": 20 * GIB, "opt": 3 * GIB, "ema": 0}, "checkpoint": 7 * GIB}
    code, said = launch("--accelerator", "nvidia-l4", shown=SHOWN | {"memory": large})
    assert code == 2
    assert "23.0 GiB on each of 32 devices (params 20.0 GiB, opt 3.0 GiB)" in said
    assert "a L4 has 22.4 GiB" in said and "loop.sharding=zero" in said
    assert launch("--accelerator", "nvidia-l4")[0] == 0
    assert launch("--accelerator", "mine", shown=None)[0] == 0


@pytest.mark.parametrize(
    "fits, batch, words",
    [
        (True, 4, ""),
        (False, 4, "a step of 4 pictures per device needs 90.0 GiB, more than a H100"),
        (True, 8, "no training step of sd15 with 4 pictures per device on 32 × H100"),
    ],
)
def test_steps_that_were_compiled(launch, tmp_path, fits, batch, words):
    row = {"what": "train", "device": "NVIDIA H100", "devices": 32, "fits": fits}
    row |= {"batch_per_device": batch, "settings": {"config": "sd15"}}
    row["memory"] = {"total": 90 * GIB}
    (tmp_path / "found.json").write_text(json.dumps([row]))
    options = ("--accelerator", "nvidia-h100-80gb", "--figures", str(tmp_path / "found.json"))
    code, said = launch(*options)
    assert code == (2 if words else 0) and words in said
    (tmp_path / "found.json").write_text("[{}]")
    assert "is not a file of `caphuman compile" in launch(*options)[1]


def test_a_disk_that_is_too_small(launch, tmp_path, monkeypatch):
    usage = room.shutil.disk_usage("/")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage._replace(free=GIB))
    with pytest.raises(room.SettingError, match="1.0 GiB free, but one checkpoint needs 7.0 GiB"):
        room.check_disk(room.shared_place(str(tmp_path / "runs" / "1")), 7 * GIB)
    for elsewhere in ("gs://b/runs/1", "/not-here/runs/1", "runs/1"):
        assert room.shared_place(elsewhere) is None
