"""Compiling ahead of time, for devices at hand and for TPU slices and GPUs that nobody has: memory,
arithmetic and the batch that fits.

libtpu compiles on any Linux machine, without a TPU. What is compiled is the loop's own step with
its shardings, and the sampler."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from caphuman_jax.aot import gpu_targets
from caphuman_jax.errors import SettingError
from caphuman_jax.runtime import compiler
from caphuman_jax.runtime.device_specs import bandwidth, memory, peak_flops

_RESERVED = {"TPU": 0.25 * 2**30}
"""Memory of a device that programs do not get: libtpu lets v5e's have 15.75 of 16 GiB."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. platform: "tpu", "gpu" or "cpu"; kind: JAX's name of the device;
    options: of the compiler, for these devices.
    """

    name: str
    devices: tuple
    platform: str
    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def capacity(self) -> float | None:
        """Bytes of a device's memory that programs can have; None where it is not known."""
        found = memory(self.kind)
        return (
            None if found is None else found - (_RESERVED["TPU"] if self.platform == "tpu" else 0)
        )

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second."""
        return bandwidth(self.kind)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One program compiled for one target. Bytes, operations and seconds are those of one device.

    fits: None where the memory is not known. total: arguments + outputs that are not arguments +
    temporaries + code. flops: of the networks, counted on what was traced; compiled_flops and
    bytes_accessed: as the compiler counts them, which leaves hand-written kernels out."""

    what: str
    target: str
    device: str
    devices: int
    batch_per_device: int
    settings: dict[str, Any]
    fits: bool | None
    capacity: float | None
    memory: dict[str, float]
    flops: float | None
    compiled_flops: float | None
    bytes_accessed: float | None
    seconds_estimate: float | None
    bound: str | None
    compile_seconds: float
    note: str = ""

    @property
    def total(self) -> float:
        return self.memory["total"]

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return self.flops / self.bytes_accessed if self.flops and self.bytes_accessed else None

    @property
    def pictures_per_second(self) -> float | None:
        """Of all devices, at most."""
        return (
            self.batch_per_device * self.devices / self.seconds_estimate
            if self.seconds_estimate
            else None
        )


def find_target(text: str) -> Target:
    """ "local"; a TPU slice as "v5e:4x4", "v5p:2x2x1", "v6e:16x16"; or GPUs as "h100", "h100:4".
    Raises SettingError.
    """
    if not text.strip():
        raise SettingError("--topology must not be empty")
    if text == "local":
        devices = tuple(jax.devices())
        return Target("local", devices, compiler.platform_of(devices[0]), devices[0].device_kind)
    if gpu_targets.is_gpu(text):
        gpu, devices = gpu_targets.find_devices(text)
        return Target(text, devices, "gpu", gpu.kind, dict(gpu_targets.OPTIONS))
    # Nothing is to be asked of a TPU host's metadata server, and other programs may compile at the
    # same time.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        devices = tuple(topologies.get_topology_desc(platform="tpu", topology_name=text).devices)
    except ModuleNotFoundError as error:
        raise SettingError(
            "compiling for TPUs needs libtpu: pip install '.[compile]' (Linux)"
        ) from error
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if (
            "libtpu" in str(error)
            and "not" in str(error).lower()
            and "topology" not in str(error).lower()
        ):
            raise SettingError(
                f"libtpu cannot be used: {error}; pip install '.[compile]' (Linux)"
            ) from error
        raise SettingError(
            f"there is no TPU slice {text!r} ({str(error).splitlines()[0]}); write for example "
            f"v5e:4x4, v5p:2x2x1 or v6e:16x16; "
            f"or GPUs: {', '.join(gpu_targets.GPUS)}, h100:4 for several"
        ) from error
    return Target(text, devices, "tpu", devices[0].device_kind)


def compile_outcome(
    lower: Callable[[], Any],
    *,
    what: str,
    target: Target,
    batch_per_device: int,
    settings: dict,
    flops: float | None,
    padded: float | None = None,
    options: dict[str, Any] | None = None,
) -> Outcome:
    """Compiles what `lower()` gives (`jax.stages.Lowered`) and says what came of it; a program that
    does not fit is an outcome too.

    padded: flops with what the device's matrix units work on besides (`runtime.flops.of`), for
        the roofline.
    """
    began = time.perf_counter()
    common = {
        "what": what,
        "target": target.name,
        "device": target.kind,
        "devices": len(target.devices),
        "batch_per_device": batch_per_device,
        "settings": settings,
        "capacity": target.capacity,
        "flops": flops,
    }
    try:
        compiled = lower().compile(
            compiler_options={
                **(compiler.options(target.platform) or {}),
                **target.options,
                **(options or {}),
            }
            or None
        )
    except jax.errors.JaxRuntimeError as error:
        if unknown := re.search(r"No such compile option: '([^']*)'", str(error)):
            raise SettingError(f"--option {unknown[1]}: the compiler has no such option") from error
        wanted = _memory_wanted(str(error))
        if wanted is None:
            raise
        return Outcome(
            **common,
            fits=False,
            memory={"total": wanted},
            compiled_flops=None,
            bytes_accessed=None,
            seconds_estimate=None,
            bound=None,
            compile_seconds=time.perf_counter() - began,
            note="the compiler gave up: it needs at least this",
        )
    seconds = time.perf_counter() - began
    memory, cost = _memory(compiled), _cost(compiled)
    fits = None if target.capacity is None else memory["total"] <= target.capacity
    compiled_flops, touched = cost.get("flops"), cost.get("bytes accessed")
    estimate, bound = roofline(max(flops or 0, padded or 0, compiled_flops or 0), touched, target)
    return Outcome(
        **common,
        fits=fits,
        memory=memory,
        compiled_flops=compiled_flops,
        bytes_accessed=touched,
        seconds_estimate=estimate,
        bound=bound,
        compile_seconds=seconds,
    )


def roofline(
    flops: float, touched: float | None, target: Target
) -> tuple[float | None, str | None]:
    """(seconds, "arithmetic" or "memory"): the larger of operations over peak and bytes, if they
    are known, over bandwidth; nothing real is as fast.
    """
    peak = peak_flops(target.kind)
    if peak is None or target.bandwidth is None or not (touched or flops):
        return None, None
    return max((flops / peak, "arithmetic"), ((touched or 0) / target.bandwidth, "memory"))


def largest_batch(
    attempt: Callable[[int], Outcome], first: int = 1, most: int = 4096
) -> list[Outcome]:
    """Outcomes of the batches that were tried until the largest that fits was found, in the order
    tried.

    Doubles until one does not fit; then halves what is between, guessing from the memory that the
    last two needed, which grows almost in a straight line. Where `first` does not fit it halves
    down."""
    tried: dict[int, Outcome] = {}

    def fits(batch: int) -> bool:
        tried[batch] = attempt(batch)
        return tried[batch].fits is not False

    low, high = 0, None
    batch = first
    while batch <= most and high is None:
        if fits(batch):
            low, batch = batch, min(batch * 2, most) if batch < most else most + 1
        else:
            high = batch
    while high is not None and high - low > 1:
        middle = _guess(tried, low, high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return list(tried.values())


def _guess(tried: dict[int, Outcome], low: int, high: int) -> int:
    """A batch between the two, where a straight line through their memory meets the capacity; the
    middle if nothing is known of one.
    """
    capacity = tried[high].capacity
    if low in tried and capacity and tried[high].total > tried[low].total:
        slope = (tried[high].total - tried[low].total) / (high - low)
        return int(min(max(low + (capacity - tried[low].total) // slope, low + 1), high - 1))
    return (low + high) // 2


def _memory(compiled) -> dict[str, float]:
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {name: float(value) for name, value in parts.items()} | {
        "total": float(sum(parts.values()))
    }


def _cost(compiled) -> dict[str, float]:
    with contextlib.suppress(NotImplementedError, jax.errors.JaxRuntimeError):
        cost = compiled.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        return {name: float(value) for name, value in (cost or {}).items() if value and value > 0}
    return {}


def _memory_wanted(message: str) -> float | None:
    """Bytes that a program needs, of the compiler's message that they are not there; None for
    another message.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else float("nan")
