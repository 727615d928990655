"""Strictness for every test: 8 simulated devices, no silent dtype promotion."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
    """Mixing dtypes by accident is an error in every test."""
    with jax.numpy_dtype_promotion("strict"):
        yield
