"""What a person sees: the line, metrics.jsonl, TensorBoard's event files, pictures."""

import json
import struct
import sys

import jax
import numpy as np
import pytest

from caphuman_jax.errors import SettingError
from caphuman_jax.io.images import read_png_metadata
from caphuman_jax.runtime import device_specs
from caphuman_jax.training import metric_writer
from caphuman_jax.training.metric_writer import MetricWriter, progress_line, quotients


def test_means_and_quotients():
    sums = {
        "loss": np.float64(6.0),
        "band": np.array([2.0, 0.0, 9.0]),
        "band_count": np.array([4.0, 0.0, 3.0]),
    }
    assert quotients(sums, 3) == {"loss": 2.0, "band": [0.5, None, 3.0]}


def test_the_line_says_how_fast_and_how_long():
    speed = {"samples_per_second": 128.0, "data_wait": 0.031, "mfu": 0.4567}
    line = progress_line(100, 1100, {"loss": 0.123456, "grad_norm": 1.5}, speed, 64)
    assert (
        line
        == "step 100/1100 · loss 0.12346 · gradient 1.5 · 128 samples/s · MFU 45.7 % · waiting for "
        "data 3.1 % · 0:08:20 left"
    )
    assert "MFU" not in progress_line(
        1, 2, {"loss": 1.0}, {"samples_per_second": 1.0, "data_wait": 0.0}, 1
    )
    assert "left" not in progress_line(2, 2, {"loss": 1.0}, speed, 64)


def test_speed_utilization_and_waiting_are_of_the_steps_alone(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metric_writer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metric_writer, "peak_flops", lambda kind: 1e12)
    told = []
    seen = MetricWriter(
        tmp_path, batch_size=32, steps=100, flops=4e12, tensorboard=False, log=told.append
    )
    for _ in range(10):
        now[0] += 1.0
        seen.add_data_wait(0.25)
        seen.add({"loss": np.float32(2.0)})
    now[0] += 5.0
    seen.exclude_seconds(5.0)  # a checkpoint
    seen.write(10)
    seen.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["samples_per_second"] == 32.0 and line["data_wait"] == 0.25
    assert (
        line["mfu"] == pytest.approx(4e12 / (jax.device_count() * 1e12))
        and "0:01:30 left" in told[0]
    )


def test_lines_of_steps_taken_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5, "loss": 1}\n{"step": 10, "loss": 2}\n{"step": 15, "loss": 3}\n{"step": 2'
    )
    seen = MetricWriter(
        tmp_path, batch_size=1, steps=20, first=10, tensorboard=False, log=lambda line: None
    )
    seen.add({"loss": np.float32(4)})
    seen.write(11)
    seen.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10, 11]


def events(folder):
    """(tag, step, value) of the event files in a folder, read by their format alone: length, its
    checksum, content, its checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value) for value in event.summary.value]
            at += 16 + length
    return found


def test_tensorboard_is_given_numbers_bands_and_pictures(tmp_path):
    seen = MetricWriter(tmp_path, batch_size=4, steps=8, log=lambda line: None)
    seen.add(
        {
            "loss": np.float32(3.0),
            "loss_band": np.array([2.0, 0.0]),
            "loss_band_count": np.array([4.0, 0.0]),
        }
    )
    seen.write(2)
    seen.write_evaluation(
        2, "previews", {"identity": 0.75}, {"sheet": np.full((6, 5, 3), 200, np.uint8)}
    )
    seen.close()
    found = events(tmp_path / "tensorboard")
    numbers = {
        tag: value.simple_value
        for tag, step, value in found
        if step == 2 and value.HasField("simple_value")
    }
    assert (
        numbers["loss"] == 3.0
        and numbers["loss_band/0"] == 0.5
        and "loss_band/1" not in numbers
        and numbers["previews/identity"] == 0.75
    )
    (image,) = [value.image for tag, _, value in found if tag == "sheet"]
    assert (image.height, image.width) == (6, 5) and image.encoded_image_string.startswith(
        b"\x89PNG"
    )
    assert read_png_metadata(tmp_path / "pictures" / "sheet-00000002.png") == {}


@pytest.mark.parametrize(
    "missing, kinds", [("tensorboardX", {}), ("wandb", {"tensorboard": False, "wandb": "project"})]
)
def test_a_missing_writer_is_told_before_training(tmp_path, monkeypatch, missing, kinds):
    monkeypatch.setattr(
        metric_writer.importlib.util, "find_spec", lambda name: None if name == missing else True
    )
    with pytest.raises(SettingError, match="pip install"):
        MetricWriter(tmp_path, batch_size=1, steps=2, **kinds)
    assert not list(tmp_path.iterdir())


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        log = staticmethod(lambda values, step: calls.append(("log", step, values)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    class Module:
        class util:
            generate_id = staticmethod(lambda: "abc")

        init = staticmethod(
            lambda **kinds: calls.append(("init", kinds["project"], kinds["id"])) or Run
        )

    monkeypatch.setitem(sys.modules, "wandb", Module)
    monkeypatch.setattr(metric_writer, "check_writers", lambda *asked: None)
    for first in (0, 1):
        seen = MetricWriter(
            tmp_path,
            batch_size=1,
            steps=4,
            first=first,
            tensorboard=False,
            wandb="faces",
            log=lambda line: None,
        )
        seen.add({"loss": np.float32(1)})
        seen.write(first + 1)
        seen.close()
    assert [call for call in calls if call[0] == "init"] == [("init", "faces", "abc")] * 2
    assert [call[1] for call in calls if call[0] == "log"] == [1, 2] and calls[1][2]["loss"] == 1.0


def test_peaks():
    assert (
        device_specs.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
        and device_specs.peak_flops("TPU v5 lite") == 197e12
    )
    assert device_specs.peak_flops("TPU v5") == 459e12 and device_specs.peak_flops("cpu") is None
