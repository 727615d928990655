"""The commands that start, follow, stop and resume a job on each platform.

A plan is a list of programs of the platform (sbatch, kubectl, gcloud, docker) with their arguments:
it is printed as it would be typed, or run.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shlex
import subprocess
from collections.abc import Mapping

from caphuman_jax.errors import SettingError
from caphuman_jax.launch import templates
from caphuman_jax.launch.job import TOGETHER, Job

ACTIONS = ("start", "follow", "stop", "resume")


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to run. env: added to the environment; text: its standard input; may_fail: the
    next one is run even if this one fails.
    """

    words: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text: str = ""
    may_fail: bool = False

    def shown(self) -> str:
        """As it is typed in a shell."""
        named = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        line = " ".join([*named, shlex.join(self.words)])
        line += " || true" if self.may_fail else ""
        return f"{line} <<'END'\n{self.text.rstrip()}\nEND" if self.text else line

    def run(self) -> int:
        """Runs it. Raises SettingError where there is no such program."""
        try:
            return subprocess.run(
                self.words,
                env={**os.environ, **self.env},
                input=self.text or None,
                text=True,
            ).returncode
        except FileNotFoundError as error:
            raise SettingError(
                f"{self.words[0]} is not installed here; without --run, its commands are printed"
            ) from error


def plan(job: Job, action: str) -> list[Command]:
    """The commands of one of `ACTIONS` on a cluster. Raises SettingError for what is missing."""
    return {"slurm": _slurm, "gke": _gke, "tpu-vm": _tpu_vm, "docker": _docker}[job.on](job, action)


def run(commands: list[Command]) -> int:
    """Runs them in order, up to the first that fails; returns its code."""
    for command in commands:
        code = command.run()
        if code and not command.may_fail:
            return code
    return 0


def _environment(job: Job) -> dict[str, str]:
    """What the hosts' environment gets on every platform."""
    found = dict(job.env)
    if job.cache:
        found["CAPHUMAN_CACHE"] = job.cache
    if job.heartbeat:
        found["CAPHUMAN_HEARTBEAT"] = str(job.heartbeat)
    if job.verb in TOGETHER and job.hosts > 1:
        found["CAPHUMAN_HOSTS"] = str(job.hosts)
    return found


def _slurm(job: Job, action: str) -> list[Command]:
    name = f"--name={job.name}"
    if action == "stop":
        # The batch script would requeue what leaves with 75, so the job is canceled: its steps get
        # SIGTERM, and KillWait seconds to save.
        return [Command(("scancel", name, f"--user={getpass.getuser()}"))]
    log = f"{job.name}.log"
    if action == "follow":
        return [
            Command(("squeue", name, "--format=%i %T %M %R")),
            Command(("tail", "--lines=100", "--follow=name", "--retry", log)),
        ]
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        f"--time={job.time}",
        f"--output={log}",
    ]
    options += [f"--gpus-per-node={job.devices}"] if job.devices else []
    options += [f"--partition={job.partition}"] if job.partition else []
    options += [f"--account={job.account}"] if job.account else []
    env = {"VENV": job.venv, "MAX_RESTARTS": str(job.max_restarts), **_environment(job)}
    if job.container:
        env |= {"CONTAINER": job.container, "MOUNTS": job.mounts}
    return [Command(("sbatch", *options, str(templates.path("slurm.sh")), *job.command), env)]


def _gke(job: Job, action: str) -> list[Command]:
    delete = Command(("kubectl", "delete", "jobset", job.name, "--ignore-not-found", "--wait"))
    if action == "stop":
        return [delete]  # its pods get SIGTERM, and five minutes to save
    if action == "follow":
        return [
            Command(("kubectl", "get", "jobset", job.name, "--output=wide")),
            Command(
                (
                    "kubectl",
                    "logs",
                    "--follow",
                    "--prefix",
                    "--tail=100",
                    f"--max-log-requests={job.hosts}",
                    f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}",
                )
            ),
        ]
    apply = Command(("kubectl", "apply", "--filename=-"), text=manifest(job))
    return [delete, apply] if action == "resume" else [apply]


def manifest(job: Job) -> str:
    """The JobSet of a job on GKE, in YAML."""
    job.require("accelerator", "image", "bucket")
    spot = "cloud.google.com/gke-spot: !!str true" if job.spot else "# any node, spot or not"
    env = {"CAPHUMAN_CACHE": "/data/cache", **_environment(job)}
    # JSON is YAML, too: nothing has to be quoted twice.
    values = {
        "RUN": job.name,
        "IMAGE": job.image,
        "BUCKET": job.bucket,
        "ACCELERATOR": job.accelerator,
        "TOPOLOGY": job.topology,
        "NODES": str(job.nodes),
        "SLICES": str(job.slices),
        "DEVICES": str(job.devices),
        "QUEUE": job.queue,
        "SERVICE_ACCOUNT": job.service_account,
        "MAX_RESTARTS": str(job.max_restarts),
        "SPOT_SELECTOR": spot,
        "ARGUMENTS": json.dumps(job.command),
        "ENVIRONMENT": json.dumps([{"name": n, "value": v} for n, v in env.items()])[1:-1],
    }
    return templates.fill("gke_tpu.yaml" if job.topology else "gke_gpu.yaml", values)


def _tpu_vm(job: Job, action: str) -> list[Command]:
    job.require("accelerator", "zone", "bucket", "repository")
    env = {
        "ACTION": action,
        "NAME": job.name,
        "ZONE": job.zone,
        "TYPE": job.accelerator,
        "REPOSITORY": job.repository,
        "BRANCH": job.branch,
        "BUCKET": job.bucket,
        "SLICES": str(job.slices),
        "VERSION": job.runtime,
        "MAX_RESTARTS": str(job.max_restarts),
    }
    env |= {"PROJECT": job.project} if job.project else {}
    env |= {"SPOT": "true"} if job.spot else {}
    own = _environment(job)
    env["ENVIRONMENT"] = " ".join(f"{name}={shlex.quote(value)}" for name, value in own.items())
    words = job.command if action in ("start", "resume") else ()
    return [Command((str(templates.path("tpu_vm.sh")), *words), env)]


def _docker(job: Job, action: str) -> list[Command]:
    if action == "stop":
        return [Command(("docker", "stop", "--time=300", job.name))]
    if action == "follow":
        return [Command(("docker", "logs", "--follow", "--tail=100", job.name))]
    job.require("image")
    if job.nodes > 1:
        job.require("coordinator")
    remove = Command(("docker", "rm", job.name), may_fail=True)
    commands = []
    for node in range(job.nodes):
        env = {"CAPHUMAN_CACHE": "/data/cache", **_environment(job)}
        if job.nodes > 1:
            env |= {
                "CAPHUMAN_COORDINATOR": job.coordinator,
                "CAPHUMAN_PROCESS_ID": str(node),
                "CAPHUMAN_PROCESS_COUNT": str(job.nodes),
            }
        words = ["docker", "run", "--detach", f"--name={job.name}", "--gpus=all", "--network=host"]
        words += ["--ipc=host", f"--restart=on-failure:{job.max_restarts}"]
        words += [f"--volume={mount}" for mount in job.mounts.split(",")]
        words += [f"--env={name}={value}" for name, value in env.items()]
        commands.append(Command((*words, job.image, *job.command)))
    return [remove, *commands] if action == "resume" else commands
