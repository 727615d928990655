"""`import caphuman_jax` in a program of one's own."""

import os
import subprocess
import sys

import pytest

_LIBTPU = """
import sys
print("a page about TPUs", file=sys.stderr)
def configure_library_path(): pass
def get_library_path(): return "/nowhere/libtpu.so"
"""


@pytest.mark.parametrize("first", ["", "import jax\n"], ids=["alone", "after jax"])
def test_without_a_tpu_libtpu_is_left_alone(first, tiny_folder, tmp_path):
    """Nothing is printed, and JAX computes on the CPU; also where JAX was imported before."""
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text(_LIBTPU if not first else "")
    program = (
        f"{first}import caphuman_jax\n"
        f"pipe = caphuman_jax.load({str(tiny_folder)!r})\n"
        "import jax\n"
        "print(jax.default_backend(), jax.config.jax_platforms)"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "JAX_PLATFORMS"}
    search = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpu", "cpu"]
    assert done.stderr == ""
