"""Two processes of `caphuman evaluate` on one report: each picture once, and the report of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xla_flags
from PIL import Image, ImageOps

TESTS = Path(__file__).parents[1]
# Every process names its pictures, and waits at the first one until the other has one.
HOST = """
import pathlib, sys, time
from caphuman_jax.cli import app
from caphuman_jax.evaluation import estimators, pictures
from caphuman_jax.jobs.outputs import Files
estimators.RESAMPLES = estimators.SHUFFLES = 5
pictures._MEASURED_AT_A_TIME = 2  # units of two pictures; a process claims two units at a time
mine, other, words = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
store = Files.store
def stored(self, picture, *args):
    with open(mine, "a") as file:
        file.write(picture.job.id + "\\n")
    end = time.monotonic() + 300
    while not other.exists():
        assert time.monotonic() < end, "the other process made nothing"
        time.sleep(0.05)
    return store(self, picture, *args)
Files.store = stored
sys.exit(app.main(words))
"""


@pytest.mark.slow
def test_two_hosts_share_one_suite(tiny_folder, astronaut_file, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with Image.open(astronaut_file) as photo:
        photo.save(photos / "a.png")
        ImageOps.mirror(photo.convert("RGB")).save(photos / "b.png")

    def start(report, mine, other):
        words = ["evaluate", "--photos", photos, "--model", tiny_folder, "--steps", "1"]
        words += ["--report", tmp_path / report, "--heads", "own", "yaw=10", "--batch", "1"]
        words += ["--per-person", "16"]  # more than one process takes in advance
        environment = {
            **os.environ,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": xla_flags.ONE_DEVICE,
        }
        return subprocess.Popen(
            [sys.executable, "-c", HOST, *map(str, [tmp_path / mine, tmp_path / other, *words])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(process):
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out[-3000:]

    runs = (("two", "first", "second"), ("two", "second", "first"), ("one", "alone", "alone"))
    for process in [start(*names) for names in runs]:
        finish(process)
    first, second, alone = (
        (tmp_path / name).read_text().split() for name in ("first", "second", "alone")
    )
    assert first and second and sorted(first + second) == sorted(alone) and len(alone) == 32
    for file in ("scores.jsonl", "pictures/index.jsonl", "people/00000.png"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")
    ]
    assert summaries[0] == summaries[1]
