"""Is there room for a training run on the machines that it is launched on? Asked on the machine
that launches, before anything is submitted.

The memory of the state follows from the configuration (`caphuman config show`), that of a whole
step from the results of `caphuman compile`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caphuman_jax.errors import SettingError
from caphuman_jax.io import buckets, json_reader
from caphuman_jax.launch.job import Job
from caphuman_jax.runtime import device_specs

_KINDS = (
    ("v5-lite", "TPU v5 lite"),
    ("v5lite", "TPU v5 lite"),
    ("v5p", "TPU v5"),
    ("v6e", "TPU v6"),
    ("v4", "TPU v4"),
    ("a100-80gb", "A100-SXM4-80GB"),
    ("b200", "B200"),
    ("h200", "H200"),
    ("h100", "H100"),
    ("a100", "A100"),
    ("l40s", "L40S"),
    ("l4", "L4"),
)
"""Part of an accelerator's name on a platform → part of JAX's `device_kind`; the first that fits
counts.
"""


def device_kind(accelerator: str) -> str:
    """JAX's name of an accelerator; "" where it is not known."""
    return next((kind for name, kind in _KINDS if name in accelerator.lower()), "")


def check(job: Job) -> None:
    """Raises SettingError where a training run does not fit: in a device's memory, or on this
    machine's disk where the job runs here or on nodes that share it. Other commands, and recipes
    that cannot say without their data, pass.
    """
    if job.verb != "train" or job.on == "local" or job.option("--help") is not None:
        return
    kind = device_kind(job.accelerator)
    place = shared_place(job.option("--workdir") or "") if job.on == "slurm" else None
    if not kind and place is None:
        return
    shown = _config(job, "tpu" if "TPU" in kind else "gpu")
    if shown is None or shown["memory"] is None:
        return
    if kind:
        check_memory(shown["memory"]["device"], kind, shown["devices"])
    if job.figures:
        check_figures(job, kind, shown["batch_size"] // shown["devices"])
    if place is not None:
        check_disk(place, shown["memory"]["checkpoint"])


def check_memory(parts: Mapping[str, int], kind: str, devices: int) -> None:
    """Raises SettingError where the state alone is larger than a device.

    Args:
        parts: {part: bytes on one device}.
        kind: part of JAX's `device_kind`.
        devices: of all hosts.
    """
    needed, has = sum(parts.values()), device_specs.memory(kind)
    if has is not None and needed > has:
        named = ", ".join(f"{part} {_gib(size)}" for part, size in parts.items() if size)
        raise SettingError(
            f"the state takes {_gib(needed)} on each of {devices} devices ({named}), but a {kind} "
            f"has {_gib(has)}: take --config.loop.sharding=zero or fsdp, or more devices "
            f"(`caphuman compile` says what fits)"
        )


def shared_place(workdir: str) -> Path | None:
    """The folder of this machine that a work folder is in or will be made in; None for a bucket,
    and for a path whose file system is not mounted here.
    """
    place = Path(workdir)
    if buckets.is_url(workdir) or not place.is_absolute():
        return None
    while not place.exists():
        place = place.parent
    return None if place == Path("/") else place


def check_disk(place: Path, checkpoint: int) -> None:
    """Raises SettingError where a folder's disk has less room than one checkpoint needs, in
    bytes.
    """
    free = shutil.disk_usage(place).free
    if free < checkpoint:
        raise SettingError(
            f"{place} has {_gib(free)} free, but one checkpoint needs {_gib(checkpoint)}; make "
            f"room, or choose another --workdir"
        )


def check_figures(job: Job, kind: str, batch: int) -> None:
    """Raises SettingError where `caphuman compile` found that a step does not fit, or did not
    compile one of this configuration, batch and number of devices.

    Args:
        job: with `figures`, a file of `caphuman compile --out`.
        kind: part of JAX's `device_kind`.
        batch: pictures per device.
    """
    wanted = (_name(job), job.hosts * job.devices, batch)
    try:
        found = [
            row
            for row in json_reader.read(job.figures)
            if row["what"] == "train"
            and kind in row["device"]
            and (row["settings"]["config"], row["devices"], row["batch_per_device"]) == wanted
        ]
        if any(row["fits"] is False for row in found):
            needed = min(row["memory"]["total"] for row in found)
            raise SettingError(
                f"a step of {batch} pictures per device needs {_gib(needed)}, more than a {kind} "
                f"has ({job.figures}): take a smaller batch, or what docs/compile.md names"
            )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingError(
            f"--figures {job.figures} is not a file of `caphuman compile --out FILE.json`: {error}"
        ) from error
    if not found:
        raise SettingError(
            f"--figures {job.figures} has no training step of {wanted[0]} with {batch} pictures "
            f"per device on {wanted[1]} × {kind or 'any device'}; compile it with `caphuman "
            f"compile --batch {batch}`"
        )


def _config(job: Job, platform: str) -> dict[str, Any] | None:
    """What `caphuman config show` says; None where this machine does not have the configuration."""
    words = [word for word in job.command if word.startswith("--config.")]
    base = next((w.partition("=")[2] for w in words if w.startswith("--config.base=")), "")
    if not Path(base).is_dir():  # of the machines alone: the configuration says its sizes
        words = [word for word in words if not word.startswith("--config.base=")]
    count = str(job.hosts * job.devices)
    options = ["--devices", count, "--platform", platform, "--json", *words]
    done = subprocess.run(
        [sys.executable, "-m", "caphuman_jax.cli", "config", "show", _name(job), *options],
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def _name(job: Job) -> str:
    return job.option("--config") or "mini"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
