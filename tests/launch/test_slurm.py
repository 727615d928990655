"""launch/slurm.sh on a real Slurm of one node, which this test starts and ends: two tasks get
SIGTERM, the job is requeued, and the next start resumes.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caphuman_jax.launch import clusters, job

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
# A requeued job waits until its credentials have expired: here 5 seconds instead of two minutes.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
CAPHUMAN = """#!{python}
'''Takes steps as training does: a start says who it is and where it begins, SIGTERM saves.'''
import os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from caphuman_jax.runtime.distributed import distributed_arguments
found = distributed_arguments(os.environ)
mine = pathlib.Path({folder!r}, f"step-{{found['process_id']}}")
step = int(mine.read_text()) if mine.exists() else 0
me = f"process {{found['process_id']}} of {{found['num_processes']}}"
print(me, "begins at", step, *sys.argv[1:], flush=True)
def save(*_):
    mine.write_text("5")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path({folder!r}, f"ready-{{found['process_id']}}").touch()
time.sleep(0 if step else 600)
"""


def missing():
    if os.name != "posix" or os.geteuid() != 0:
        return "Slurm's daemons are started by root"
    lost = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"Slurm is not installed ({', '.join(lost)})" if lost else ""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Runs a command of the cluster and returns its output."""
    if why := missing():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    host = socket.gethostname().partition(".")[0]
    path = tmp_path / "slurm.conf"
    path.write_text(CONFIG.format(host=host, folder=tmp_path, ports=ports))
    monkeypatch.setenv("SLURM_CONF", str(path))
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    daemons = [
        subprocess.Popen([name, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("slurmctld", "slurmd")
    ]

    def run(*words):
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    try:
        wait(lambda: "idle" in run("sinfo", "--noheader", "--format=%T"), tmp_path)
        yield run
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(20)


def wait(condition, folder, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):  # the controller starts
            if condition():
                return
        logs = [path.read_text()[-2000:] for path in sorted(folder.glob("*.log"))]
        assert time.monotonic() < deadline, "\n---\n".join(logs)
        time.sleep(0.1)


@pytest.mark.alone
@pytest.mark.slow
def test_a_job_is_requeued_after_sigterm_and_resumes(slurm, tmp_path):
    program = tmp_path / "venv" / "bin" / "caphuman"
    program.parent.mkdir(parents=True)
    text = CAPHUMAN.format(python=sys.executable, root=str(ROOT), folder=str(tmp_path))
    program.write_text(text)
    program.chmod(0o755)
    made = job.Job(
        command=("train", "--workdir", str(tmp_path / "it's a run")),
        on="slurm",
        name="run-1",
        devices=1,
        time="00:10:00",
        venv=str(tmp_path / "venv"),
    )
    (command,) = clusters.plan(made, "start")
    # A node without GPUs, with two tasks.
    words = [word for word in command.words if "gpus" not in word]
    words[1:1] = ["--ntasks-per-node=2"]
    environment = [f"{name}={value}" for name, value in command.env.items()]
    tested = slurm("env", *environment, words[0], "--test-only", *words[1:])
    assert "to start at" in tested
    number = slurm("env", *environment, *words).split()[-1]
    log = tmp_path / "run-1.log"
    said = lambda: log.read_text() if log.exists() else ""
    wait(lambda: all((tmp_path / f"ready-{n}").exists() for n in (0, 1)), tmp_path)
    slurm("scancel", "--signal=TERM", number)
    wait(lambda: said().count("begins at 5") == 2, tmp_path)
    wait(lambda: not slurm("squeue", "--noheader", "--states=running,pending"), tmp_path)
    for process in (0, 1):
        for step in (0, 5):
            assert f"process {process} of 2 begins at {step} train" in said()
    assert "it's a run" in said()
