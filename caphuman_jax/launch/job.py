"""What is launched where: one small YAML file, or the same entries as flags."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from caphuman_jax.errors import SettingError
from caphuman_jax.io.files import read_regular

_MAX_BYTES = 2**20
_MOST = 100_000  # hosts, devices of a host, and slices
PLATFORMS = ("local", "docker", "slurm", "gke", "tpu-vm")
TOGETHER = ("train", "doctor")
"""Commands whose hosts compute together, through jax.distributed."""
SHARED = ("sample", "evaluate")
"""Commands whose hosts share out the work through the output folder."""
ALONE = ("prepare",)
"""Commands of one host; `prepare` spreads by its own --runner."""


def _field(default: Any, text: str) -> Any:
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Job:
    """One command on some machines. Each field is a flag of `caphuman launch` and an entry of its
    YAML file; the help of each says which platforms read it.
    """

    command: tuple[str, ...] = ()
    on: str = _field("local", f"platform: {', '.join(PLATFORMS)}")
    name: str = _field("caphuman", "name of the job: lower-case letters, digits and hyphens")
    nodes: int = _field(1, "machines; on TPUs the hosts of one slice")
    devices: int = _field(1, "GPUs or chips of a machine; local: simulated devices")
    slices: int = _field(1, "gke, tpu-vm: TPU slices")
    accelerator: str = _field(
        "",
        "gke: value of the node label, such as nvidia-h100-80gb; tpu-vm: type, v5litepod-16; "
        "slurm, docker: name of the GPU, to check that the state fits",
    )
    figures: str = _field(
        "", "file of `caphuman compile --out FILE.json`, to check that a step fits"
    )
    topology: str = _field("", "gke: topology of a TPU slice, such as 4x4; empty: GPUs")
    image: str = _field("", "gke, docker: image of launch/Dockerfile")
    bucket: str = _field("", "gke, tpu-vm: bucket that is mounted at /data")
    zone: str = _field("", "tpu-vm: zone")
    project: str = _field("", "tpu-vm: project; default: gcloud's")
    repository: str = _field("", "tpu-vm: git URL of this project")
    branch: str = _field("main", "tpu-vm: its branch")
    runtime: str = _field("v2-alpha-tpuv5-lite", "tpu-vm: version of the machines' image")
    spot: bool = _field(False, "gke, tpu-vm: cheaper machines that may be taken away")
    max_restarts: int = _field(10, "starts after the first")
    queue: str = _field("default", "gke: local queue of Kueue")
    service_account: str = _field("default", "gke: Kubernetes service account")
    partition: str = _field("", "slurm: partition")
    account: str = _field("", "slurm: account")
    time: str = _field("24:00:00", "slurm: time limit")
    container: str = _field("", "slurm: image for Pyxis")
    mounts: str = _field("/data:/data", "slurm, docker: HOST:CONTAINER, separated by commas")
    venv: str = _field(".venv", "slurm: environment with the package")
    coordinator: str = _field("", "docker with several nodes: HOST:PORT of node 0")
    cache: str = _field("", "folder of compiled programs, on storage that all hosts share")
    heartbeat: int = _field(0, "seconds until a silent host counts as dead; default: 15")
    logs: str = _field("", "local: folder of the hosts' logs; default: NAME.logs")
    network: str = _field("auto", "local: namespaces, loopback, or auto: namespaces for root")
    env: dict[str, str] = _field({}, "NAME=VALUE for every host; may be repeated")
    wrap: dict[str, str] = _field(
        {}, "local: N=COMMAND that host N is started with, such as 1='prlimit --fsize=1000000'"
    )

    def __post_init__(self):
        if self.on not in PLATFORMS:
            raise SettingError(f"--on {self.on}: there are {', '.join(PLATFORMS)}")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise SettingError(
                f"--name {self.name!r}: at most 40 lower-case letters, digits and hyphens, "
                f"beginning with a letter"
            )
        for name in ("nodes", "devices", "slices"):
            if getattr(self, name) < 1:
                raise SettingError(f"--{name} is at least 1")
            if getattr(self, name) > _MOST:
                raise SettingError(f"--{name} is at most {_MOST:,}")
        if self.max_restarts < 0 or self.heartbeat < 0:
            raise SettingError("--max-restarts and --heartbeat are at least 0")
        if self.network not in ("auto", "namespaces", "loopback"):
            raise SettingError("--network is auto, namespaces or loopback")

    @property
    def verb(self) -> str:
        """The command's name, "" without one."""
        return self.command[0] if self.command else ""

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return self.nodes * self.slices

    def check_command(self) -> None:
        """Raises SettingError for a command that cannot be launched so."""
        known = (*TOGETHER, *SHARED, *ALONE)
        if self.verb not in known:
            raise SettingError(
                f"{self.verb or 'nothing'} cannot be launched; after -- comes {', '.join(known)} "
                f"with its arguments"
            )
        if self.verb in ALONE and self.hosts > 1:
            raise SettingError(
                f"{self.verb} runs on one host; it spreads with its own --runner: --nodes 1"
            )
        if self.verb == "evaluate" and self.hosts > 1 and self.option("--overwrite") is not None:
            raise SettingError(
                "evaluate --overwrite on several hosts would delete what the others have begun; "
                "delete the report first"
            )
        if self.verb == "train" and not (self.option("--workdir") or self.option("--help")):
            raise SettingError("train needs --workdir, on storage that all hosts share")
        if self.hosts > 1:
            taken = [
                flag
                for flag in ("--coordinator", "--process-id", "--process-count")
                if self.option(flag)
            ]
            if taken:
                raise SettingError(f"{', '.join(taken)}: launch sets this itself; leave it out")

    def option(self, name: str) -> str | None:
        """The value of an option of the command, "" for one without."""
        for number, word in enumerate(self.command):
            if word.startswith(name + "="):
                return word.partition("=")[2]
            if word == name:
                following = self.command[number + 1 : number + 2]
                return following[0] if following else ""
        return None

    def require(self, *names: str) -> None:
        """Raises SettingError where one of these entries is empty."""
        missing = [f"--{name.replace('_', '-')}" for name in names if not getattr(self, name)]
        if missing:
            raise SettingError(f"--on {self.on} needs {', '.join(missing)}")


def fields() -> dict[str, tuple[type, Any, str]]:
    """{field: (type, default, help)} of everything but the command."""
    kinds = typing.get_type_hints(Job)
    empty = Job()
    return {
        field.name: (kinds[field.name], getattr(empty, field.name), field.metadata["help"])
        for field in dataclasses.fields(Job)
        if field.name != "command"
    }


def make_job(
    path: Path | None,
    flags: Mapping[str, Any],
    command: Sequence[str],
    needs_command: bool = True,
) -> Job:
    """A job of a YAML file and flags; flags win, and so does a command on the command line.

    Raises:
        SettingError: for a file that cannot be read, unknown entries or values of another type.
    """
    entries: dict[str, Any] = {} if path is None else _read(path)
    written = entries.pop("command", [])
    if not isinstance(written, list) or not all(isinstance(word, str) for word in written):
        raise SettingError(f"{path}: command is a list of words, each in quotes")
    known = fields()
    for name, value in entries.items():
        if name not in known:
            raise SettingError(f"{path}: {name} is not an entry; there are {', '.join(known)}")
        kind, default, _ = known[name]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise SettingError(f"{path}: {name} is a table of NAME: VALUE")
            for key, one in value.items():
                if isinstance(one, bool) or not isinstance(one, str | int | float):
                    raise SettingError(
                        f"{path}: {name}.{key} is {one!r}; it is a text or a number, in quotes "
                        f"where YAML would read something else"
                    )
            entries[name] = {str(key): str(one) for key, one in value.items()}
        elif type(value) is not kind:
            raise SettingError(f"{path}: {name} is {value!r}; it is of type {kind.__name__}")
    given = {name: value for name, value in flags.items() if value is not None}
    job = Job(command=tuple(command or written), **{**entries, **given})
    if needs_command:
        job.check_command()
    return job


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_regular(path, _MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingError(f"{path} is not a table of NAME: VALUE")
    # YAML 1.1 reads a bare `on` as true.
    return {"on" if name is True else name: value for name, value in content.items()}
