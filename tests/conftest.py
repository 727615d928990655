"""For every test: 8 simulated devices, no silent dtype promotion, and programs compiled fast rather than compiled to be fast."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# LLVM's optimisation takes up to two thirds of compiling, and the networks here are tiny. XLA's own passes all run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # flame_standin


@pytest.fixture(autouse=True)
def strict_dtypes():
    """Mixing dtypes by accident is an error in every test."""
    with jax.numpy_dtype_promotion("strict"):
        yield
