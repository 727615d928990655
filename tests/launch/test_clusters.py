"""launch/: scripts that shellcheck accepts and that run against stand-ins of the clusters'
commands, and manifests whose variables are those that training looks for.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caphuman_jax.errors import SettingError
from caphuman_jax.launch import clusters, job
from caphuman_jax.runtime.distributed import distributed_arguments

LAUNCH = Path(__file__).parents[2] / "launch"
ODD = ['--config.name=it\'s "a" $(test) `b` {x} ü', "--workdir", "/data/runs/1"]


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    assert script.stat().st_mode & 0o111
    subprocess.run([Path(sys.executable).with_name("shellcheck"), script], check=True)


def manifest(*arguments, **settings):
    """The JobSet that `caphuman launch --on gke` prints."""
    given = {"nodes": 4, "accelerator": "kind", "image": "registry/caphuman", "bucket": "bucket"}
    made = job.Job(command=("train", *arguments), on="gke", name="run-1", **(given | settings))
    return yaml.safe_load(clusters.manifest(made))


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return replicated, job, pod, pod["containers"][0]


def test_gpu_pods_know_who_they_are():
    jobset = manifest(*ODD, devices=8, spot=True)
    replicated, job, pod, container = job_of(jobset)
    name = jobset["metadata"]["name"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]} | {
        "JOB_COMPLETION_INDEX": "3"
    }
    found = distributed_arguments(environment)
    assert found["num_processes"] == job["completions"] == job["parallelism"] == 4
    assert found["process_id"] == 3
    # JobSet names a pod JOBSET-REPLICATEDJOB-JOB-POD, in a subdomain of its own name.
    host, _ = found["coordinator_address"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "kind",
        "cloud.google.com/gke-spot": "true",
    }


@pytest.mark.parametrize("topology", ["", "4x4"])
def test_arguments_arrive_as_they_were_typed(topology):
    jobset = manifest(*ODD, topology=topology)
    _, job, pod, container = job_of(jobset)
    assert container["command"] == ["caphuman"] and container["args"] == ["train", *ODD]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    # 75, the loss of another host, and a node that is taken away start all pods again without
    # counting; the rest counts.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    rules = job["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}
    assert rules[0]["onExitCodes"]["values"] == [75, 134]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10 and policy["rules"] == [
        {
            "name": "startAgain",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]


def test_tpu_slices_have_a_node_pool_each():
    jobset = manifest(*ODD, topology="4x4", devices=4, slices=2, queue="team")
    replicated, job, pod, container = job_of(jobset)
    assert replicated["replicas"] == 2 and job["completions"] == 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    (topology,) = jobset["metadata"]["annotations"].values()
    assert topology == "cloud.google.com/gke-nodepool"
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {"CAPHUMAN_CACHE": "/data/cache", "CAPHUMAN_HOSTS": "8"}


@pytest.mark.parametrize(
    "more, local",
    [
        ({}, [2]),
        ({"SLURM_GPUS_PER_TASK": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),  # --gpu-bind
        ({"CUDA_VISIBLE_DEVICES": "MIG-41b36874-c7dc-5d5a-9c6a-5d5a9c6a41b3"}, None),
        ({"ROCR_VISIBLE_DEVICES": "3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, None),
    ],
)
def test_a_slurm_task_takes_a_device_that_it_sees(more, local):
    environment = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[01-02]",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "6",
        "SLURM_LOCALID": "2",
    } | more
    found = distributed_arguments(environment)
    assert found.get("local_device_ids") == local and found["process_id"] == 6


def test_half_of_the_flags_is_an_error():
    with pytest.raises(SettingError, match="CAPHUMAN_PROCESS_COUNT missing"):
        distributed_arguments(
            {"CAPHUMAN_COORDINATOR": "a:1", "JOB_COMPLETION_INDEX": "0"},
        )


def program(folder, name, text):
    """A stand-in of a cluster's command."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CAPHUMAN_CACHE", raising=False)
    return folder


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [(0, 0, False), (2, 0, False), (75, 0, True), (134, 0, True), (137, 3, True), (75, 20, False)],
)
def test_slurm_requeues_what_another_start_can_finish(
    stand_ins, tmp_path, monkeypatch, code, restarts, requeued
):
    program(stand_ins, "srun", f'printf "%s\\n" "$@" >"$LOG"; exit {code}')
    program(stand_ins, "scontrol", 'echo "$@" >>"$LOG.scontrol"')
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    done = subprocess.run([LAUNCH / "slurm.sh", "train", *ODD], cwd=tmp_path)
    assert done.returncode == code
    said = (tmp_path / "log").read_text().splitlines()
    assert said[-len(ODD) :] == ODD and said[-len(ODD) - 1] == "train"
    log = tmp_path / "log.scontrol"
    assert (log.read_text() == "requeue 42\n") if requeued else not log.exists()


def test_tpu_vms_are_asked_for_and_made_again(stand_ins, tmp_path, monkeypatch):
    """The first machines are taken away while training; on the second, training asks once to be
    started again, loses another host once, and ends.
    """
    project = tmp_path / "caphuman_jax"
    (project / ".venv" / "bin").mkdir(parents=True)
    program(project / ".venv" / "bin", "python", "")
    program(
        project / ".venv" / "bin",
        "caphuman",
        'python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@" >>"$LOG.train"\n'
        'case $(wc -l <"$LOG.train") in 1) exit 75 ;; 2) exit 134 ;; esac\n',
    )
    for name in ("git", "uv", "gcsfuse", "sudo"):
        program(stand_ins, name, "")
    program(stand_ins, "mountpoint", "exit 0")
    program(
        stand_ins,
        "gcloud",
        """
echo "$@" | cut -c1-90 >>"$LOG"
case "$*" in
  *describe*) head -n 1 "$LOG.states"; sed -i 1d "$LOG.states" ;;
  *"tpu-vm ssh"*)
    if [ ! -e "$LOG.lost" ]; then touch "$LOG.lost"; exit 255; fi
    cd "$HOME" && bash -c "${@: -1}" ;;
esac
""",
    )
    states = ["WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    (tmp_path / "log.states").write_text("\n".join(states) + "\n")
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "train", *ODD],
        env={
            **os.environ,
            "NAME": "run-1",
            "ZONE": "z",
            "TYPE": "v5litepod-16",
            "REPOSITORY": "https://example.org/x.git",
            "BUCKET": "b",
            "PROJECT": "p",
            "POLL": "0.1",
        },
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text()
    assert "queued-resources delete run-1" in calls
    starts = [json.loads(line) for line in (tmp_path / "log.train").read_text().splitlines()]
    assert starts == [["train", *ODD, "--multihost"]] * 3


MANIFESTS = [{"devices": 8, "spot": True}, {"topology": "4x4", "devices": 4, "slices": 2}]


@pytest.mark.parametrize("settings", MANIFESTS, ids=["gpu", "tpu"])
def test_manifests_fit_the_published_schemas(settings):
    """JobSet's by the models that Kubeflow generates from it, which drop what they do not know;
    Job's by the JSON schema of Kubernetes, which refuses it.
    """
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    jobset = manifest(*ODD, **settings)
    read = models.JobsetV1alpha2JobSet.from_dict(jobset)
    assert read.to_dict() == jobset
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    job["spec"] = replicated["template"]["spec"]
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, newest, strict=True)
    job["spec"]["backofflimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, newest, strict=True)


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    # Versions of Debian's packages and pip's are those of the image's day and of constraints.txt.
    ignored = ["--ignore", "DL3008", "--ignore", "DL3013"]
    subprocess.run([hadolint, *ignored, LAUNCH / "Dockerfile"], check=True)


def test_xpk_accepts_the_command_of_the_documentation(tmp_path):
    """Its dry run writes the JobSet that it would apply."""
    if (xpk := shutil.which("xpk")) is None:
        pytest.skip("xpk is not installed; its versions do not go with those of constraints.txt")
    text = (LAUNCH.parent / "docs" / "launch.md").read_text()
    (line,) = re.findall(r"^xpk (workload create .*)$", text, re.MULTILINE)
    out = tmp_path / "jobset.yaml"
    more = ["--dry-run", "--skip-validation", f"--output-manifest-file={out}"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([xpk, *shlex.split(line), *more], check=True, env=environment, cwd=tmp_path)
    jobset = yaml.safe_load(out.read_text())
    _, job, pod, container = job_of(jobset)
    (rule,) = job["podFailurePolicy"]["rules"]
    ends = rule["onExitCodes"]
    assert ends["operator"] == "NotIn" and {75, 134, 142} <= set(ends["values"])
    assert job["completions"] == 4 and pod["terminationGracePeriodSeconds"] == 300
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["CAPHUMAN_HOSTS"] == "4"
    assert "caphuman train --config sd15_tpu" in container["command"][-1]
