"""`caphuman launch`: entries of a file and flags, what is refused, and what is printed."""

import json
import shlex

import pytest

from caphuman_jax.cli import app
from caphuman_jax.errors import SettingError
from caphuman_jax.launch import clusters, job, outcome, templates
from caphuman_jax.runtime import agreement, distributed

TRAIN = ("train", "--config", "sd15", "--workdir", "/data/runs/it's 1")


@pytest.mark.parametrize(
    "codes, code",
    [
        ((0, 0), 0),
        ((75, 75), 75),
        ((75, 134, 75), 75),  # a host that lost another does not end the requeue
        ((-9, 134), 75),
        ((137, -6), 75),
        ((0, 134), 75),
        ((2, 134, 134), 2),
        ((-14, 134), 75),  # a host whose steps hang
        ((75, 1), 1),
        ((130, 75), 130),
        ((-6, 2, 1), 2),
    ],
)
def test_one_code_for_a_job(codes, code):
    assert outcome.job_code(codes) == code


def test_a_file_and_flags(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "on: slurm\nnodes: 4\ndevices: 8\npartition: gpu\nenv: {NCCL_DEBUG: INFO}\n"
        f"command: {json.dumps(TRAIN)}\n"
    )
    found = job.make_job(path, {"nodes": 2, "account": None}, [])
    assert (found.nodes, found.devices, found.partition) == (2, 8, "gpu")
    assert found.command == TRAIN and found.env == {"NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("nodes: many", "nodes is 'many'; it is of type int"),
        ("node: 4", "node is not an entry; there are on, name, nodes"),
        ("- nodes", "is not a table"),
        ("a: [", "cannot be read"),
        ("command: train --config sd15", "command is a list of words"),
        ("on: cloud", "there are local, docker, slurm, gke, tpu-vm"),
        ("env: 3", "env is a table"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=words):
        job.make_job(path, {}, TRAIN)


@pytest.mark.parametrize(
    "settings, command, words",
    [
        ({}, [], "nothing cannot be launched"),
        ({}, ["generate"], "generate cannot be launched"),
        ({}, ["train"], "train needs --workdir"),
        ({"nodes": 2}, ["prepare", "--photos", "x"], "own --runner: --nodes 1"),
        ({"nodes": 2}, ["evaluate", "--overwrite"], "would delete what the others have begun"),
        ({"nodes": 2}, [*TRAIN, "--process-id=0"], "launch sets this itself"),
        ({"name": "Run_1"}, TRAIN, "lower-case letters"),
        ({"nodes": 0}, TRAIN, "--nodes is at least 1"),
        ({"devices": 10**9}, TRAIN, "--devices is at most 100,000"),
    ],
)
def test_what_cannot_be_launched_is_refused(settings, command, words):
    with pytest.raises(SettingError, match=words):
        job.make_job(None, settings, command)


@pytest.mark.parametrize(
    "text, words",
    [
        ("command: 5", "command is a list of words"),
        ("command:", "command is a list of words"),
        ("command: {train: 1}", "command is a list of words"),
        ("env: {A: 1, B: null}", "env.B is None; it is a text or a number"),
        ("env: {A: true}", "env.A is True; it is a text or a number"),
        ("env: {A: [1]}", "env.A is .1.; it is a text or a number"),
        ("wrap: {0: null}", "wrap.0 is None"),
    ],
)
def test_wrong_values_of_a_file_are_named(tmp_path, text, words):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SettingError, match=words):
        job.make_job(tmp_path / "job.yaml", {}, TRAIN)


@pytest.mark.parametrize("on, missing", [("gke", "--accelerator, --image"), ("tpu-vm", "--zone")])
def test_what_a_platform_needs_is_named(on, missing):
    with pytest.raises(SettingError, match=missing):
        clusters.plan(job.Job(command=TRAIN, on=on), "start")


def test_a_dry_run_prints_what_a_shell_would_run(capsys):
    options = ["launch", "--on", "slurm", "--nodes", "4", "--devices", "8", "--heartbeat", "20"]
    assert app.main([*options, "--", *TRAIN, "--config.data=/a b"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert "CAPHUMAN_HEARTBEAT=20" in words and "--nodes=4" in words
    script = str(templates.path("slurm.sh"))
    assert words[words.index(script) + 1 :] == [*TRAIN, "--config.data=/a b"]


@pytest.mark.parametrize("action", ["follow", "stop", "resume"])
@pytest.mark.parametrize("on", ["slurm", "gke", "tpu-vm", "docker"])
def test_every_platform_starts_follows_stops_and_resumes(on, action):
    given = {"accelerator": "a", "zone": "z", "bucket": "b", "repository": "r", "image": "i"}
    found = clusters.plan(job.Job(command=TRAIN, on=on, **given), action)
    assert all(command.words for command in found)


def test_docker_hosts_know_their_numbers():
    made = job.Job(command=TRAIN, on="docker", image="i", nodes=2, coordinator="a:1")
    for number, command in enumerate(clusters.plan(made, "start")):
        given = [word.removeprefix("--env=") for word in command.words if "--env=" in word]
        environment = dict(word.split("=", 1) for word in given)
        assert distributed.distributed_arguments(environment)["process_id"] == number


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"SLURM_JOB_NUM_NODES": "4"}, "4 nodes, but this process was not started by srun"),
        ({"JOB_COMPLETION_INDEX": "2"}, "a pod of several"),
    ],
)
def test_hosts_that_would_train_alone_are_refused(environment, words):
    with pytest.raises(SettingError, match=words):
        distributed.distributed_arguments(environment)


def test_a_launched_host_does_not_start_alone():
    with pytest.raises(SettingError, match="4 hosts were launched .* found no other"):
        distributed.join(None, {"CAPHUMAN_HOSTS": "4"})
    distributed.join(None, {"CAPHUMAN_HOSTS": "1"})


def test_differences_name_every_entry():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    other = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert agreement.differences(first, other) == [
        "a.b is 2 there and 1 on host 0",
        "d is None there and 'x' on host 0",
        "e is 3 there and None on host 0",
    ]
    assert agreement.differences(first, first) == []
