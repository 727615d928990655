"""Real processes: two hosts as one, a run killed at random moments, signals to one of several
hosts. All through `caphuman train`.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xla_flags

TESTS = Path(__file__).parents[1]


def start(workdir, *options, devices=1, process=None, port=None):
    """`caphuman train` of the tiny recipe on simulated devices; one of two processes where
    `process` is given.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"{xla_flags.ONE_DEVICE} --xla_force_host_platform_device_count={devices}",
    }
    hosts = (
        []
        if process is None
        else [
            "--coordinator",
            f"127.0.0.1:{port}",
            "--process-id",
            str(process),
            "--process-count",
            "2",
        ]
    )
    command = [
        sys.executable,
        "-m",
        "caphuman_jax.cli",
        "train",
        "--config",
        str(TESTS / "tiny_recipe.py"),
        "--workdir",
        str(workdir),
        *hosts,
        *options,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0, seconds=600):
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, out[-3000:]
    return out


def pair(workdir, *options, devices=4):
    """Two processes of so many devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(workdir, *options, devices=devices, process=number, port=port) for number in range(2)
    ]


def weights(workdir):
    with np.load(workdir / "model" / "params.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same(found, expected):
    """Weights alike but for rounding: all together, and each to a thirtieth of one of AdamW's steps
    (0.01), which divide by a gradient's own size and so make something of rounding where it is next
    to nothing.
    """
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) < 2e-5 * np.linalg.norm(value), name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=3e-4, err_msg=name)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.alone
@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    """The same numbers as one process of as many devices; rows of their own; a checkpoint by two,
    read by one.
    """
    options = (
        "--config.loop.log_every=1",
        "--config.loop.sharding=fsdp",
        "--config.loop.fsdp=8",
        "--config.loop.save_every=6",
        "--config.evaluators.held_out.every=6",
        "--config.loop.best=held_out/loss",
    )
    both = pair(tmp_path / "two", *options)
    said = [finish(process) for process in both]
    assert "step 12/12" in said[0] and "step" not in said[1], "the first process alone speaks"
    finish(start(tmp_path / "one", *options, devices=8))
    assert losses(tmp_path / "two").keys() == losses(tmp_path / "one").keys() == set(range(1, 13))
    for step, loss in losses(tmp_path / "one").items():
        assert losses(tmp_path / "two")[step] == pytest.approx(loss, abs=1e-5)
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"))
    measured = [
        json.loads((tmp_path / run / "checkpoints" / "12" / "metrics" / "metrics").read_text())[
            "held_out/loss"
        ]
        for run in ("one", "two")
    ]
    assert measured[0] == pytest.approx(measured[1], abs=1e-4)
    assert json.loads((tmp_path / "two" / "starts.jsonl").read_text())["hosts"] == 2

    # One process of two devices goes on from the middle.
    for step in (tmp_path / "two" / "checkpoints").iterdir():
        if step.name == "12":
            step.rename(tmp_path / "later")
    before = weights(tmp_path / "two")
    alone = finish(
        start(
            tmp_path / "two",
            "--config.loop.sharding=zero",
            "--config.loop.fsdp=1",
            "--config.loop.log_every=1",
            devices=2,
        )
    )
    assert "resumed at step 6" in alone
    assert_same(before, weights(tmp_path / "two"))


@pytest.mark.alone
@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_at_one_step(tmp_path):
    both = pair(
        tmp_path,
        "--config.training.steps=100000",
        "--config.pause=0.02",
        "--config.loop.log_every=5",
        "--config.loop.save_every=0",
        devices=1,
    )
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(losses(tmp_path)) >= 2, both)
    both[1].send_signal(signal.SIGTERM)
    said = finish(both[0], 75), finish(both[1], 75)
    assert "asked to stop: saved at step" in said[0]
    (checkpoint,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert f"step {checkpoint} of 100000" in said[0]


@pytest.mark.alone
@pytest.mark.slow
def test_an_export_that_outlasts_the_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_HEARTBEAT", "5")
    for process in pair(tmp_path, "--config.slow_export=20", devices=1):
        finish(process)
    assert weights(tmp_path)


@pytest.mark.alone
@pytest.mark.slow
def test_a_host_that_dies_ends_the_others_and_the_next_start_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_HEARTBEAT", "5")
    options = (
        "--config.training.steps=60",
        "--config.loop.log_every=1",
        "--config.loop.save_every=5",
    )
    both = pair(tmp_path / "killed", *options, "--config.pause=0.1", devices=1)
    wait_for(lambda: newest(tmp_path / "killed") >= 12, both)
    both[1].kill()
    both[1].communicate()
    died = time.monotonic()
    out, _ = both[0].communicate(timeout=600)
    assert time.monotonic() - died < 60 and both[0].returncode not in (0, 2), out[-2000:]
    said = [
        finish(process)
        for process in pair(tmp_path / "killed", *options, "--config.pause=0.1", devices=1)
    ]
    assert "resumed at step" in said[0]
    for process in pair(tmp_path / "straight", *options, "--config.pause=0.1", devices=1):
        finish(process)
    straight, killed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    for name, value in straight.items():
        assert value.tobytes() == killed[name].tobytes(), name


@pytest.mark.slow
def test_killed_six_times_and_the_same_to_the_last_bit(tmp_path):
    options = (
        "--config.training.steps=100",
        "--config.loop.save_every=2",
        "--config.loop.log_every=1",
        "--config.pause=0.05",
    )
    chance = random.Random(0)
    undisturbed = start(tmp_path / "straight", *options)
    kills, reached = 0, []
    while kills < 6:
        process = start(tmp_path / "killed", *options)
        # Somewhere in the next steps, or while starting, reading or writing.
        target = (reached[-1] if reached else 0) + chance.randint(1, 3)
        wait_for(lambda: newest(tmp_path / "killed") >= target or process.poll() is not None, [])
        time.sleep(chance.uniform(0, 0.25))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            reached.append(newest(tmp_path / "killed"))
        else:
            assert process.returncode == 0
            break
    assert kills == 6, f"the run ended after {kills} kills"
    out = finish(start(tmp_path / "killed", *options))
    assert "resumed at step" in out
    finish(undisturbed)
    straight, killed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert straight.keys() == killed.keys()
    for name, value in straight.items():
        assert value.tobytes() == killed[name].tobytes(), name
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")


def newest(workdir) -> int:
    """The last step that was told."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def wait_for(condition, processes, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            pytest.fail(
                "\n".join(process.communicate()[0][-2000:] for process in processes)
                or "nothing happened"
            )
        time.sleep(0.05)
