"""Which of the installed platforms JAX looks for, and when it starts one."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import sys
import threading
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


def start_device() -> threading.Thread:
    """Start JAX's first device in a thread, while the caller imports what it needs.

    Finding CUDA and the first allocation take a second of an H200. Who uses the device next waits
    for it, and is told what is wrong with it. The process ends only after the thread, since
    Python cannot end while a library's code runs in one.
    """

    import jax  # here, since two threads that import may each wait for the other

    def start():
        with contextlib.suppress(Exception):
            jax.device_put(0.0).block_until_ready()

    thread = threading.Thread(target=start, name="start-device")
    thread.start()
    return thread
