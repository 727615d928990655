"""From a cluster's environment variables, or flags, to the arguments of
`jax.distributed.initialize`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any

from caphuman_jax.errors import CapHumanError, SettingError

HEARTBEAT = 15
"""Seconds until a silent host counts as dead. With those that launchers wait after the first host
has ended, a job is down within a minute.
"""
_LINGER = 3.0  # seconds
_failed = False


def distributed_arguments(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    process_id: int | None = None,
    process_count: int | None = None,
) -> dict[str, Any] | None:
    """Keyword arguments for `jax.distributed.initialize`, or None where there is one process alone.

    Flags come first, all three together; then CAPHUMAN_COORDINATOR, CAPHUMAN_PROCESS_ID and
    CAPHUMAN_PROCESS_COUNT (what launch/ sets on Kubernetes, where JOB_COMPLETION_INDEX stands in
    for the second); then a Slurm step of more than one task (inside `srun`); then TPU hosts, which
    JAX finds out itself. Raises SettingError for what is incomplete or no number."""
    flags = {
        "--coordinator": coordinator,
        "--process-id": process_id,
        "--process-count": process_count,
    }
    if any(value is not None for value in flags.values()):
        return _arguments(flags)
    names = ("CAPHUMAN_COORDINATOR", "CAPHUMAN_PROCESS_ID", "CAPHUMAN_PROCESS_COUNT")
    if any(name in environment for name in names):
        given = {name: environment.get(name) for name in names}
        given[names[1]] = given[names[1]] or environment.get("JOB_COMPLETION_INDEX")
        return _arguments(given)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _slurm(environment)
    if (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    ):
        return {}
    _check_alone(environment)
    return None


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raises SettingError where one process of several would train for itself."""
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
    if nodes > 1 and "SLURM_STEP_ID" not in environment:
        raise SettingError(
            f"the Slurm job has {nodes} nodes, but this process was not started by srun, so it "
            f"would train alone; launch/slurm.sh does it right"
        )
    if int(environment.get("JOB_COMPLETION_INDEX", 0)) > 0:
        raise SettingError(
            "this is a pod of several (JOB_COMPLETION_INDEX), but CAPHUMAN_COORDINATOR and "
            "CAPHUMAN_PROCESS_COUNT are missing, so each would train for itself; `caphuman launch "
            "--on gke` sets them"
        )


def _arguments(given: dict[str, Any]) -> dict[str, Any] | None:
    missing = [name for name, value in given.items() if value in (None, "")]
    if missing:
        raise SettingError(
            f"{', '.join(missing)} missing: {', '.join(given)} must be given together"
        )
    address, number, count = given.values()
    try:
        number, count = int(number), int(count)
    except ValueError as error:
        raise SettingError(f"{', '.join(list(given)[1:])} are whole numbers: {error}") from error
    if not re.fullmatch(r".+:\d+", str(address)):
        raise SettingError(
            f"{next(iter(given))} is {address!r}; it must be HOST:PORT of process 0, such as "
            f"10.0.0.1:8476"
        )
    if not 0 <= number < count:
        raise SettingError(f"process {number} of {count}: processes are counted from 0")
    if count == 1:
        return None
    return {
        "coordinator_address": str(address),
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """One process a node with all of its devices, or as many as the node has tasks, each with the
    device of its number.
    """
    host = first_node(environment["SLURM_STEP_NODELIST"])
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096  # jobs on one node do not meet
    arguments = {
        "coordinator_address": f"{host}:{port}",
        "num_processes": int(environment["SLURM_STEP_NUM_TASKS"]),
        "process_id": int(environment["SLURM_PROCID"]),
        "cluster_detection_method": "deactivate",
    }
    alone = re.fullmatch(
        r"1(\(x\d+\))?(,1(\(x\d+\))?)*", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    )
    # With --gpus-per-task, --gpu-bind or MIG a task sees its own devices alone, numbered from 0.
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES"))
    bound = "SLURM_GPUS_PER_TASK" in environment or (
        visible is not None and len(visible.split(",")) == 1
    )
    return (
        arguments
        if alone or bound
        else arguments | {"local_device_ids": [int(environment["SLURM_LOCALID"])]}
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: "gpu[003-005,9],login" → "gpu003"."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if not found:
        raise SettingError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host")
    return "".join(part or "" for part in found.groups())


def join(arguments: dict[str, Any] | None, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes; to be called before anything else of JAX. On CPUs they talk
    through gloo.

    A process that sends no sign of life for $CAPHUMAN_HEARTBEAT seconds (default 15) counts as
    dead, and the others end with code 134. Raises SettingError where that is not a number of
    seconds, and where another number of hosts than $CAPHUMAN_HOSTS have met.
    """
    expected = environment.get("CAPHUMAN_HOSTS") or "1"
    if not expected.isdecimal():
        raise SettingError(f"CAPHUMAN_HOSTS is {expected!r}; a number of hosts is wanted")
    if arguments is None:
        _check_hosts(1, int(expected))
        return
    heartbeat = environment.get("CAPHUMAN_HEARTBEAT") or str(HEARTBEAT)
    if not heartbeat.isdecimal() or not 1 <= int(heartbeat) <= 86400:
        raise SettingError(f"CAPHUMAN_HEARTBEAT is {heartbeat!r}; it must be whole seconds")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=int(heartbeat))
    if int(expected) > 1:
        _check_hosts(jax.process_count(), int(expected))


@contextlib.contextmanager
def left_on_error() -> Generator[None]:
    """A process of several that fails in the block ends at once after the command has reported it
    (`leave`): whatever waits for the others at the end of a process would wait for hosts that wait
    for this one. They notice that it is gone, and end with 134.
    """
    global _failed
    try:
        yield
    except BaseException:
        import jax

        _failed = jax.process_count() > 1
        raise


_LOST = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|Connection (reset|closed|refused)|Socket "
    r"closed|coordination service|\bbarrier\b",
    re.IGNORECASE,
)


def is_lost_host(error: BaseException) -> bool:
    """Whether an error means that this process of several has lost another: what is sent to a host
    or waits for it may fail before its missing heartbeat is noticed.
    """
    import jax

    # Orbax raises TimeoutError, an OSError without a number, when a wait for other hosts fails.
    of_a_file = isinstance(error, OSError) and not (
        isinstance(error, TimeoutError) and error.errno is None
    )
    if jax.process_count() == 1 or of_a_file or isinstance(error, CapHumanError):
        return False
    return bool(_LOST.search(str(error)))


def leave(code: int, failed: bool = False) -> None:
    """Ends the process with `code`, from any thread, if it has failed as one of several (`failed`,
    or in `left_on_error`); else does nothing.
    """
    if not (failed or _failed):
        return
    import jax

    if jax.process_index() == 0:
        # What all hosts found wrong is reported by all before the coordinator is gone.
        time.sleep(_LINGER)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _check_hosts(found: int, expected: int) -> None:
    """Raises SettingError where fewer or more hosts have met than were launched."""
    if found != expected:
        raise SettingError(
            f"{expected} hosts were launched (CAPHUMAN_HOSTS), but this one has found "
            f"{'no other' if found == 1 else f'{found} in all'}: each would train for itself. Give "
            f"--coordinator, --process-id and --process-count, or --multihost on TPU VMs"
        )
