"""NVIDIA GPUs that are not at hand, described to XLA's compiler for them, which needs none to be
there.

What cannot be tried without one is decided by default: nothing is tuned, and products are cuBLAS's
instead of Triton's."""

from __future__ import annotations

import dataclasses
import os
import re

import jax

from caphuman_jax.errors import SettingError
from caphuman_jax.runtime.device_specs import bandwidth, memory

OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Of XLA, for a GPU that is not there."""

KIB = 1024


@dataclasses.dataclass(frozen=True)
class Gpu:
    """By NVIDIA's data sheets and CUDA's programming guide. kind: JAX's name; capability: of
    computing; lanes: float32 units of a multiprocessor; clock: GHz; cache (level 2) and shared (of
    a multiprocessor): bytes. Its memory is in `training.devices`.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    clock: float
    cache: int
    shared: int

    def described(self) -> str:
        """The compiler's description, `stream_executor.GpuTargetConfigProto` as text."""
        major, minor = self.capability
        threads = 2048 if self.capability in ((8, 0), (9, 0)) else 1536
        features = "ACCELERATED_FEATURES" if major == 9 else "NONE"
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.kind}"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
              core_count: {self.multiprocessors} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              device_memory_size: {round(memory(self.kind) or 0)} memory_bandwidth: {round(bandwidth(self.kind) or 0)} l2_cache_size: {self.cache}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {threads}
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_core: {self.shared} shared_memory_per_block: {48 * KIB} shared_memory_per_block_optin: {self.shared - KIB}
            }}"""  # noqa: E501


GPUS = {
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 1.41, 40 * KIB**2, 164 * KIB),
    "a100-80": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * KIB**2, 164 * KIB),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 128, 2.04, 48 * KIB**2, 100 * KIB),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 128, 2.52, 96 * KIB**2, 100 * KIB),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * KIB**2, 228 * KIB),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 50 * KIB**2, 228 * KIB),
}
"""Name on the command line → card."""


def is_gpu(text: str) -> bool:
    """Whether a topology names one of GPUS, by itself or with a number of cards: "h100",
    "h100:4".
    """
    return text.partition(":")[0].lower() in GPUS


def find_devices(text: str) -> tuple[Gpu, tuple]:
    """The card and compile-only devices of one host of "h100:4". Raises SettingError."""
    name, colon, count = text.lower().partition(":")
    if colon and not re.fullmatch(r"[1-9]\d*", count):
        raise SettingError(f"--topology {text}: write {name}, or {name}:N for N cards of one host")
    os.environ.setdefault(
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1"
    )  # it asks the driver, and there may be none
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{count or 1}", target_config=GPUS[name].described()
        )
    except RuntimeError as error:  # NotImplementedError is one, and JAX's own
        raise SettingError(
            f"JAX cannot compile for an NVIDIA GPU that is not here "
            f"({str(error).splitlines()[0]}): pip install 'jax[cuda13]' of the "
            f"version that is here, {jax.__version__}"
        ) from error
    return GPUS[name], tuple(found.devices)
