"""Is this machine, or this job's set of machines, fit for work? Each check is a function that
returns its findings; none of them raises.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io import buckets
from caphuman_jax.runtime.compile_cache import cache_folder
from caphuman_jax.training.room import available_memory

OK, WARNING, FAILED = "ok", "warning", "failed"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_LEAST_DISK = 10 * 2**30
_CLOCK = 5.0  # seconds that clocks may differ
_COLLECTIVE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. state: OK, WARNING or FAILED; text: one line; numbers: for --json."""

    name: str
    state: str
    text: str
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def examine(workdir: str = "", face: bool = True) -> list[Finding]:
    """All checks, in order.

    Args:
        workdir: a folder or a URL in a bucket that a run would use; "" for none.
        face: whether the shipped model makes a picture.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("versions", _versions),
        ("devices", _devices),
        ("memory", _memory),
        ("disk", _disk),
        ("hosts", _hosts),
        ("collectives", _collectives),
    ]
    if workdir:
        checks.append(("work folder", lambda: _work_folder(workdir)))
    if face:
        checks.append(("face", _face))
    return [_tried(name, check) for name, check in checks]


def _tried(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever is wrong with the machine is a finding
        text = " ".join(str(error).split())[:200]
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        plain = isinstance(error, CapHumanError | OSError)
        return Finding(name, FAILED, text if plain else f"{type(error).__name__}: {text}")


def _versions() -> Finding:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    found = {"python": platform.python_version(), **found}
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("versions", OK, text, found)


def _devices() -> Finding:
    import jax
    import jax.numpy as jnp
    import numpy as np

    kinds: dict[str, int] = {}
    for device in jax.local_devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
        x = jax.device_put(np.ones((256, 256), np.float32), device)
        if float(jnp.sum(x @ x)) != 256.0**3:
            return Finding("devices", FAILED, f"{device} multiplies wrongly", kinds)
    text = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    if jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
        why = "; an NVIDIA GPU is there, but JAX does not use it: pip install '.[cuda]'"
        return Finding("devices", WARNING, text + why, kinds)
    return Finding("devices", OK, text, kinds)


def _memory() -> Finding:
    import jax

    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    numbers = {"host": available_memory(), "device": min(filter(None, limits), default=None)}
    parts = [f"host {_gib(numbers['host'])} free"] if numbers["host"] else []
    parts += [f"each device {_gib(numbers['device'])}"] if numbers["device"] else []
    few = numbers["host"] is not None and numbers["host"] < 4 * 2**30
    text = ", ".join(parts) or "not known"
    return Finding("memory", WARNING if few else OK, text, numbers)


def _disk() -> Finding:
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    state = WARNING if free < _LEAST_DISK else OK
    return Finding("disk", state, f"{_gib(free)} free for {cache_folder()}", {"free": free})


def _hosts() -> Finding:
    """Names and clocks of all hosts."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return Finding("hosts", OK, f"{socket.gethostname()}, alone", {"count": 1})
    multihost_utils.sync_global_devices("clock")
    # Two halves, since JAX would make a float64 a float32.
    now = time.time()
    halves = np.array([now // 1e4, now % 1e4], np.float32)
    clocks = [float(a) * 1e4 + float(b) for a, b in multihost_utils.process_allgather(halves)]
    spread = max(clocks) - min(clocks)
    text = f"{jax.process_count()}, clocks within {spread:.1f} s"
    numbers = {"count": jax.process_count(), "clock_spread": spread}
    return Finding("hosts", OK if spread < _CLOCK else WARNING, text, numbers)


def _collectives() -> Finding:
    """Bandwidth of an all-reduce over all devices: 2 (n - 1)/n of the bytes cross each link."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.devices()
    if len(devices) == 1:
        return Finding("collectives", OK, "one device: nothing to exchange", {})
    mesh = jax.sharding.Mesh(np.array(devices), ("all",))
    split = NamedSharding(mesh, PartitionSpec("all"))
    whole = NamedSharding(mesh, PartitionSpec())
    length = _COLLECTIVE_BYTES // 4
    make = jax.jit(lambda: jnp.ones((len(devices), length), jnp.float32), out_shardings=split)
    x = make()
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
    if float(total(x).addressable_shards[0].data[0]) != len(devices):
        return Finding("collectives", FAILED, "an all-reduce gave a wrong sum", {})
    began, times = time.perf_counter(), 3
    jax.block_until_ready([total(x) for _ in range(times)])
    seconds = (time.perf_counter() - began) / times
    rate = 2 * (len(devices) - 1) / len(devices) * _COLLECTIVE_BYTES / seconds
    text = f"all-reduce of {_COLLECTIVE_BYTES >> 20} MiB over {len(devices)} devices: "
    return Finding("collectives", OK, f"{text}{rate / 1e9:.2f} GB/s", {"bytes_per_second": rate})


def _work_folder(workdir: str) -> Finding:
    """Writes, reads, lists and deletes a small file, and compares the storage's clock with ours."""
    buckets.check(workdir)
    folder = epath.Path(workdir.removeprefix("file://"))
    name = f".doctor-{uuid.uuid4().hex}"
    data = os.urandom(2**20).hex()
    if not buckets.is_url(workdir):
        for place in (folder, *folder.parents):
            if os.path.lexists(place) and not place.is_dir():
                text = f"{place} is not a directory; choose another --workdir"
                return Finding("work folder", FAILED, text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    began = time.perf_counter()
    path.write_text(data)
    written = time.perf_counter() - began
    try:
        if path.read_text() != data or name not in [one.name for one in folder.iterdir()]:
            return Finding("work folder", FAILED, f"{workdir} does not give back what is written")
        late = abs(path.stat().mtime - time.time())
    finally:
        path.unlink()
    numbers = {"write_seconds": written, "clock_difference": late}
    text = f"{workdir}: 2 MiB written in {written:.2f} s"
    if late > _CLOCK:
        return Finding("work folder", WARNING, f"{text}; its clock is {late:.0f} s off", numbers)
    return Finding("work folder", OK, text, numbers)


def _face() -> Finding:
    from importlib.resources import files

    import caphuman_jax
    from caphuman_jax.face import detect

    began = time.perf_counter()
    pipe = caphuman_jax.load("mini")
    photo = files("caphuman_jax") / "assets" / "astronaut_nasa.png"
    result = pipe(reference=str(photo), prompt="a photo of a person", seed=0)
    found = any(next(detect.search(result.images[0]), []))
    seconds = time.perf_counter() - began
    text = "a face" if found else "a picture without a face"
    return Finding(
        "face",
        OK if found else FAILED,
        f"the shipped model made {text} in {seconds:.0f} s",
        {"seconds": seconds},
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
