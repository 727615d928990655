"""Which of the installed platforms JAX looks for."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import sys
from pathlib import Path

_CHIPS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")
_GOOGLE = "0x1ae0"  # PCI vendor


def spare_libtpu() -> None:
    """Keep JAX from searching for TPUs where libtpu is installed only to compile: the search takes
    seconds and prints a page.

    To be called before JAX computes anything. Nothing changes where JAX_PLATFORMS is set, or where
    there may be an accelerator.
    """
    if (
        "JAX_PLATFORMS" in os.environ
        or importlib.util.find_spec("libtpu") is None
        or any(map(glob.glob, _CHIPS))
    ):
        return
    with contextlib.suppress(OSError):
        vendors = glob.glob("/sys/bus/pci/devices/*/vendor")
        if any(Path(path).read_text(errors="replace").strip() == _GOOGLE for path in vendors):
            return
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "jax" in sys.modules:  # it has read the variable already
            import jax

            if jax.config.values["jax_platforms"] is None:
                jax.config.update("jax_platforms", "cpu")
