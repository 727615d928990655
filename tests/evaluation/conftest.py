"""Compiled programs go to a folder of the tests' own."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    """JAX's settings are as before afterwards."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CAPHUMAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    yield
    patch.undo()
    for name, value in before.items():
        jax.config.update(name, value)
