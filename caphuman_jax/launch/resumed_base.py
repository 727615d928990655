"""Is the base of a training that is resumed the one that it began with? Asked on the machine that
launches, before anything is submitted. The hosts ask again at their start.
"""

from __future__ import annotations

import importlib.util
from pathlib import PurePosixPath

from etils import epath

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.io import buckets, json_reader
from caphuman_jax.launch.job import Job

_MOUNTED = PurePosixPath("/data")
"""Where GKE and TPU VMs mount the bucket."""


def check(job: Job) -> None:
    """Raises SettingError where the newest checkpoint of a training's work folder has other hashes
    of frozen weights than the base. Passes where this machine can read only one of them.
    """
    workdir, base = job.option("--workdir"), job.option("--config.base")
    if job.verb != "train" or not workdir or not base:
        return
    try:
        with buckets.problems(workdir):
            newest = _checkpoint(place(job, workdir))
            hashes = _hashes(place(job, base)) if newest else {}
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if newest is None:
        return
    step, frozen = newest
    wrong = sorted(name for name, sha256 in frozen.items() if hashes.get(name, sha256) != sha256)
    if wrong:
        raise SettingError(
            f"the checkpoint of step {step} in {workdir} was trained on another base than {base}: "
            f"{', '.join(wrong)} differ; give the base that the run began with, or another "
            f"--workdir"
        )


def place(job: Job, path: str) -> epath.Path | None:
    """Where this machine finds a path of the hosts; None where it does not."""
    if buckets.is_url(path):
        buckets.check(path)
        return epath.Path(path)
    pure = PurePosixPath(path)
    if not pure.is_absolute():
        return None
    if job.on in ("gke", "tpu-vm"):
        if not pure.is_relative_to(_MOUNTED) or importlib.util.find_spec("gcsfs") is None:
            return None
        url = f"gs://{job.bucket}/{pure.relative_to(_MOUNTED)}"
        buckets.check(url)
        return epath.Path(url)
    if job.on == "docker" or job.container:
        for mount in job.mounts.split(","):
            here, _, there = mount.partition(":")
            there = there.partition(":")[0]  # without options such as :ro
            if there and pure.is_relative_to(there):
                return epath.Path(here) / str(pure.relative_to(there))
        return None
    return epath.Path(path)


def _checkpoint(workdir: epath.Path | None) -> tuple[int, dict[str, str]] | None:
    """(step, {network: SHA-256 of its frozen weights}) of the newest checkpoint."""
    folder = None if workdir is None else workdir / "checkpoints"
    if folder is None or not folder.exists():
        return None
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    if not steps:
        return None
    described = (folder / str(max(steps)) / "run" / "metadata").read_text()
    return max(steps), dict(json_reader.parse(described)["content"]["frozen"])


def _hashes(base: epath.Path | None) -> dict[str, str]:
    """{network: SHA-256} of a model folder."""
    if base is None:
        return {}
    document = buckets.read_bytes(base / "config.json", json_reader.MAX_BYTES)
    files = json_reader.parse(document)["files"]
    return {name: entry["sha256"] for name, entry in files.items()}
