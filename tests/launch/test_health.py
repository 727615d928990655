"""What happens to a job when one of its hosts does: real processes, each in a network namespace
where this machine permits it, started by `caphuman launch --on local`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from caphuman_jax.launch import network

TESTS = Path(__file__).parents[1]
OPTIONS = (
    "--config.training.steps=60",
    "--config.pause=0.1",
    "--config.loop.log_every=1",
    "--config.loop.save_every=5",
    "--config.loop.sharding=fsdp",
    "--config.loop.fsdp=0",
)
HEARTBEAT = 5
BOUND = 60
"""Seconds in which a job has to be down."""


class Launch:
    """A running `caphuman launch --on local --nodes 2` of the tiny recipe."""

    def __init__(self, workdir, *options, training=()):
        self.workdir, self.logs = Path(workdir), Path(f"{workdir}.logs")
        self.out = Path(f"{workdir}.out")
        command = [sys.executable, "-m", "caphuman_jax.cli", "launch", "--on", "local"]
        command += ["--nodes", "2", "--heartbeat", str(HEARTBEAT), "--logs", str(self.logs)]
        command += [*options, "--", "train", "--config", str(TESTS / "tiny_recipe.py")]
        command += ["--workdir", str(workdir), *OPTIONS, *training]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "OMP_NUM_THREADS": "1",
        }
        with open(self.out, "w") as file:
            self.process = subprocess.Popen(
                command, env=environment, cwd=TESTS.parent, stdout=file, stderr=subprocess.STDOUT
            )

    def wait_for(self, condition, seconds=600):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def step(self):
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def hosts(self):
        return json.loads((self.logs / "hosts.json").read_text())["hosts"]

    def finish(self, code=0, seconds=600):
        assert self.process.wait(timeout=seconds) == code, self.said()
        return self.said()

    def said(self):
        logs = [path.read_text()[-3000:] for path in sorted(self.logs.glob("*.log"))]
        return "\n---\n".join([self.out.read_text(), *logs])


def weights(workdir):
    with np.load(workdir / "model" / "params.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    Launch(workdir).finish()
    return weights(workdir)


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def kill(host):
    os.killpg(host["pid"], signal.SIGKILL)


def freeze(host):
    os.killpg(host["pid"], signal.SIGSTOP)


def cut_off(host):
    subprocess.run(["ip", "link", "set", host["link"], "down"], check=True)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("disturb, number", [(kill, 0), (kill, 1), (freeze, 0), (cut_off, 1)])
def test_a_host_that_is_lost_ends_the_job_and_the_next_start_resumes(
    tmp_path, undisturbed, disturb, number
):
    if disturb is cut_off and isinstance(network.make("auto", 2), network.Loopback):
        pytest.skip("this machine does not permit network namespaces")
    launch = Launch(tmp_path / "run", "--max-restarts", "1")
    launch.wait_for(lambda: launch.step() >= 12)
    disturb(launch.hosts()[number])
    began = time.monotonic()
    launch.wait_for(lambda: "start 1 ended with 75" in launch.out.read_text(), BOUND)
    print(f"{disturb.__name__} {number}: down after {time.monotonic() - began:.0f} s")
    said = launch.finish()
    assert "resumed at step" in said and "start 2 ended with 0" in said
    assert_same_bits(weights(tmp_path / "run"), undisturbed)


@pytest.mark.alone
@pytest.mark.slow
def test_a_host_whose_steps_hang_ends_the_job_and_the_next_start_resumes(tmp_path, undisturbed):
    """Its heartbeats continue, and none of its Python threads runs."""
    hang = f"--config.hang=1:call:{tmp_path / 'mark'}"
    options = (hang, "--config.loop.hang_seconds=4")
    said = Launch(tmp_path / "run", "--max-restarts", "1", training=options).finish()
    assert "start 1 ended with 75" in said and "142" in said and "in hang_once" in said
    assert "resumed at step" in said and "start 2 ended with 0" in said
    assert_same_bits(weights(tmp_path / "run"), undisturbed)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_host_whose_disk_is_full_ends_the_job(tmp_path, undisturbed, number):
    began = time.monotonic()
    full = Launch(tmp_path / "run", "--wrap", f"{number}=prlimit --fsize=40000")
    said = full.finish(2)
    assert time.monotonic() - began < 2 * BOUND
    assert "start 1 ended with 2" in said and "a checkpoint cannot be written" in said
    Launch(tmp_path / "run").finish()
    assert_same_bits(weights(tmp_path / "run"), undisturbed)
    logs = [tmp_path / "run" / "hosts" / f"host-{host}.log" for host in (0, 1)]
    assert all("step 60: seconds" in log.read_text() for log in logs)


@pytest.mark.alone
@pytest.mark.slow
def test_hosts_that_differ_are_refused_by_name(tmp_path):
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@" --config.training.seed=3\n')
    wrapper.chmod(0o755)
    said = Launch(tmp_path / "run", "--wrap", f"1={wrapper}").finish(2)
    assert "host 1 (" in said and "config.training.seed is 3 there and 0 on host 0" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.alone
@pytest.mark.slow
def test_all_hosts_are_told_to_stop(tmp_path, undisturbed):
    launch = Launch(tmp_path / "run", training=("--config.loop.save_every=0",))
    launch.wait_for(lambda: launch.step() >= 8)
    launch.process.send_signal(signal.SIGTERM)
    said = launch.finish(75)
    assert "asked to stop: saved at step" in said and "host 0: 75, host 1: 75" in said
    Launch(tmp_path / "run").finish()
    assert_same_bits(weights(tmp_path / "run"), undisturbed)
