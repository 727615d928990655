"""What devices can do at most, to compare with what they do."""

from __future__ import annotations

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("TPU7x", 2.307e15),
    ("TPU v6", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 123e12),
)
"""Part of JAX's `device_kind` → bfloat16 operations a second, dense, by the makers' data sheets;
the first that fits counts.
"""

MEMORY: tuple[tuple[str, float, float], ...] = (
    ("TPU v5 lite", 17.2, 819),
    ("TPU v5e", 17.2, 819),
    ("TPU v5", 102.8, 2765),
    ("TPU v6", 34.4, 1640),
    ("TPU v4", 34.4, 1228),
    ("TPU7x", 103.1, 3690),
    ("H200", 141, 4800),
    ("H100 PCIe", 80, 2000),
    ("H100", 80, 3350),
    ("B200", 180, 8000),
    ("A100-SXM4-80GB", 80, 2039),
    ("A100", 40, 1555),
    ("L40S", 48, 864),
    ("L4", 24, 300),
    ("A10G", 24, 600),
)
"""Part of JAX's `device_kind` → memory of a device in 10⁹ bytes and its bandwidth in 10⁹ bytes a
second, by the makers' data sheets (TPUs' are 16, 95, 32 GiB …); the first that fits counts.
"""

MATRIX_UNIT: tuple[tuple[str, int], ...] = (("TPU v6", 256), ("TPU7x", 256), ("TPU", 128))
"""Part of JAX's `device_kind` → side of the matrix units that fill up narrower channels and heads
with zeros; the first that fits counts.
"""


def peak_flops(kind: str) -> float | None:
    """Of one JAX device; None for one that is not in the table (all CPUs)."""
    return next((peak for name, peak in PEAK_FLOPS if name in kind), None)


def memory(kind: str) -> float | None:
    """Bytes of one JAX device's memory; None for one that is not in the table."""
    return next((size * 1e9 for name, size, _ in MEMORY if name in kind), None)


def bandwidth(kind: str) -> float | None:
    """Bytes a second that one JAX device's memory gives; None for one that is not in the table."""
    return next((speed * 1e9 for name, _, speed in MEMORY if name in kind), None)


def matrix_unit(kind: str) -> int:
    """Side of one JAX device's matrix units, see `MATRIX_UNIT`; 1 for one that is not in the
    table.
    """
    return next((side for name, side in MATRIX_UNIT if name in kind), 1)
