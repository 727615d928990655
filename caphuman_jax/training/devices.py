"""What devices can do at most, to compare with what they do."""

from __future__ import annotations

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("B200", 2.25e15), ("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("L4", 121e12), ("A10G", 70e12),
    ("TPU7x", 2.307e15), ("TPU v6", 918e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5", 459e12), ("TPU v4", 275e12),
    ("TPU v3", 123e12),
)
"""Part of JAX's `device_kind` → bfloat16 operations a second, dense, by the makers' data sheets; the first that fits counts."""


def peak_flops(kind: str) -> float | None:
    """Of one JAX device; None for one that is not in the table (all CPUs)."""
    return next((peak for name, peak in PEAK_FLOPS if name in kind), None)
