"""A run whose work folder is gs://… or s3://…, on stand-ins of the protocols: stopped, resumed from
another machine, looked at and exported.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bucket_servers import SERVERS

TESTS = Path(__file__).parents[1]
OPTIONS = (
    "--config.training.steps=40",
    "--config.pause=0.1",
    "--config.loop.log_every=1",
    "--config.loop.save_every=10",
)


@pytest.fixture(scope="module", params=SERVERS)
def server(request):
    """(scheme, environment for a process that uses the stand-in, which runs in this one)."""
    with SERVERS[request.param]() as found:
        yield (
            request.param,
            {
                **os.environ,
                "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
                "OMP_NUM_THREADS": "1",
                **found,
            },
        )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The model of the same run on a disk."""
    folder = tmp_path_factory.mktemp("local")
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    finish(train(("", environment), folder, str(folder / "run")))
    return arrays(folder / "run" / "model")


def command(server, folder, *words):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "caphuman_jax.cli", *words],
        env=server[1],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(server, folder, workdir):
    config = str(TESTS / "tiny_recipe.py")
    return command(server, folder, "train", "--config", config, "--workdir", workdir, *OPTIONS)


def finish(process, code=0):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out[-3000:]
    return out


def arrays(folder):
    with np.load(folder / "params.npz") as file:
        return {name: file[name].tobytes() for name in file.files}


@pytest.mark.slow
def test_a_run_in_a_bucket(server, local, tmp_path):
    url = f"{server[0]}://bucket/run"
    first = train(server, tmp_path / "one", url)
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "step 15/40" in line:
            first.send_signal(signal.SIGTERM)
            break
    out = "".join(lines) + finish(first, 75)
    assert "asked to stop: saved at step" in out
    assert list((tmp_path / "one").iterdir()) == [], "no folder gs: or s3: is made"

    second = finish(train(server, tmp_path / "two", url))
    assert "resumed at step" in second
    found = finish(command(server, tmp_path / "two", "status", url, "--json"))
    (status,) = json.loads(found[found.index("[\n") :])
    assert (status["state"], status["step"], status["starts"]) == ("finished", 40, 2)
    assert status["checkpoint"] == 40 and 0 < status["goodput"] <= 1

    out = tmp_path / "exported"
    finish(command(server, tmp_path / "two", "export", url, str(out)))
    assert arrays(out) == local
