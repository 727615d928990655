"""What importing costs, and what an installation holds."""

import pkgutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import caphuman_jax

CHECK = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = {"tensorflow", "torch", "transformers", "diffusers", "apache_beam", "gradio"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, f"a device was touched: {list(xla_bridge._backends)}"
"""


def run(*modules):
    result = subprocess.run([sys.executable, "-c", CHECK, *modules], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_import_touches_no_device_and_no_heavy_library():
    run("caphuman_jax")


def test_no_module_touches_a_device_or_a_heavy_library_when_imported():
    run(
        *(
            m.name
            for m in pkgutil.walk_packages(
                caphuman_jax.__path__, "caphuman_jax.", onerror=pytest.fail
            )
        )
    )


@pytest.mark.parametrize("folder", ["face", "head", "text"])
def test_shipped_parts_come_with_their_notices(folder):
    notice = (files("caphuman_jax") / "assets" / folder / "NOTICE.md").read_text()
    for item in (files("caphuman_jax") / "assets" / folder).iterdir():
        assert item.name == "NOTICE.md" or item.name in notice, item.name
    assert f"assets/{folder}/NOTICE.md" in (Path(__file__).parents[1] / "NOTICE").read_text()
