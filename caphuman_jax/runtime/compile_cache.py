"""Compiled programs, kept between runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import jax

log = logging.getLogger("caphuman_jax")


def cache_folder() -> Path:
    """Where compiled programs are kept: $CAPHUMAN_CACHE, or caphuman_jax in $XDG_CACHE_HOME or
    ~/.cache.
    """
    own = os.environ.get("CAPHUMAN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "caphuman_jax"


def keep_compiled() -> None:
    """Turn on JAX's persistent compilation cache in `cache_folder()`, unless one is set already or
    the folder cannot be made.
    """
    if jax.config.jax_compilation_cache_dir:  # pyrefly: ignore[missing-attribute]
        return
    where = cache_folder() / "compiled"
    try:
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
    # Around the sampler run about a hundred programs of a few operations; a GPU's compiler takes 40
    # ms for the least of them, a CPU's hardly any.
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.3 if jax.default_backend() == "cpu" else 0.0
    )
