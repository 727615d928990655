"""Compiled programs, kept between runs."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

log = logging.getLogger("caphuman_jax")

_keeps = False


def cache_folder() -> Path:
    """Where compiled programs are kept: $CAPHUMAN_CACHE, or caphuman_jax in $XDG_CACHE_HOME or
    ~/.cache.
    """
    own = os.environ.get("CAPHUMAN_CACHE")
    own = None if own and "://" in own else own  # only compiled programs can be kept in a bucket
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "caphuman_jax"


def cpu_type() -> str:
    """A short name for what a CPU can do. Programs for one type may crash on another, and home
    directories are shared by machines, so each type has a folder of its own.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")  # the latter two on ARM
    found = sorted({line for line in lines if line.split("\t")[0].strip(" :") in wanted})
    text = "\n".join([platform.machine(), platform.processor(), *found])
    return f"cpu-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def keeps_compiled() -> bool:
    """Whether this process keeps what it compiles: after `keep_compiled`."""
    return _keeps


def keep_compiled() -> None:
    """Turn on JAX's persistent compilation cache in `cache_folder()`, in a folder of its own for
    each type of CPU, unless one is set already or the folder cannot be made.
    """
    global _keeps
    _keeps = True
    if jax.config.jax_compilation_cache_dir:  # pyrefly: ignore[missing-attribute]
        return
    own = os.environ.get("CAPHUMAN_CACHE", "")
    parts = ("compiled", cpu_type()) if jax.default_backend() == "cpu" else ("compiled",)
    # JAX writes to buckets itself; Path would make a folder gs: of gs://bucket.
    where = "/".join((own.rstrip("/"), *parts)) if "://" in own else cache_folder().joinpath(*parts)
    try:
        if isinstance(where, Path):
            where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning(
            "compiled programs cannot be kept in %s (%s); every run compiles again. Set "
            "CAPHUMAN_CACHE to another folder.",
            where,
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Around the sampler run about a hundred programs of a few operations; a GPU's compiler
        # takes 40 ms for the least of them, a CPU's hardly any.
        least = 0.3 if jax.default_backend() == "cpu" else 0.0
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
