"""A run whose work folder is gs://…, on an emulator of Google's protocol: stopped, resumed from
another machine, looked at and exported.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]
OPTIONS = (
    "--config.training.steps=40",
    "--config.pause=0.1",
    "--config.loop.log_every=1",
    "--config.loop.save_every=10",
)


@pytest.fixture(scope="module")
def server():
    """Environment for a process that uses the emulator, which runs in this one."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        """Google's answers have this header, and TensorStore needs it; the emulator's lack it."""
        download(request, response, storage, *args, **kwargs)
        names = request.params["bucket_name"], request.params["object_id"]
        if response.status < 300:
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

    objects.download = with_generation
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    yield {
        **os.environ,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "test",
    }
    running.stop()
    objects.download = download


def command(server, folder, *words):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "caphuman_jax.cli", *words],
        env=server,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(server, folder, workdir):
    config = str(TESTS / "tiny_recipe.py")
    return command(server, folder, "train", "--config", config, "--workdir", workdir, *OPTIONS)


def finish(process, code=0):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out[-3000:]
    return out


def arrays(folder):
    with np.load(folder / "params.npz") as file:
        return {name: file[name].tobytes() for name in file.files}


@pytest.mark.slow
def test_a_run_in_a_bucket(server, tmp_path):
    first = train(server, tmp_path / "one", "gs://bucket/run")
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "step 15/40" in line:
            first.send_signal(signal.SIGTERM)
            break
    out = "".join(lines) + finish(first, 75)
    assert "asked to stop: saved at step" in out
    assert list((tmp_path / "one").iterdir()) == [], "no folder gs: is made"

    second = finish(train(server, tmp_path / "two", "gs://bucket/run"))
    assert "resumed at step" in second
    found = finish(command(server, tmp_path / "two", "status", "gs://bucket/run", "--json"))
    (status,) = json.loads(found[found.index("[\n") :])
    assert (status["state"], status["step"], status["starts"]) == ("finished", 40, 2)
    assert status["checkpoint"] == 40 and 0 < status["goodput"] <= 1

    finish(train(server, tmp_path / "three", str(tmp_path / "local")))
    out = tmp_path / "exported"
    finish(command(server, tmp_path / "two", "export", "gs://bucket/run", str(out)))
    assert arrays(out) == arrays(tmp_path / "local" / "model")
