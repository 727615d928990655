"""`import caphuman_jax` in a program of one's own."""

import os
import subprocess
import sys

import pytest

import caphuman_jax
from caphuman_jax.errors import CapHumanError, PhotoError
from caphuman_jax.io.frames import frames

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


BLANK = [
    ("reference", {"reference": ""}),
    ("reference", {"reference": ["ASTRONAUT", " "]}),
    ("reference", {"people": [{"reference": "ASTRONAUT"}, {"reference": ""}]}),
    ("mask", {"people": [{"reference": "ASTRONAUT", "mask": ""}]}),
    ("photo of head", {"reference": "ASTRONAUT", "head": ""}),
    ("photo of head", {"reference": "ASTRONAUT", "head": {"photo": " "}}),
    ("photo of edit", {"edit": {"photo": ""}}),
    ("mask of edit", {"edit": {"photo": "ASTRONAUT", "mask": ""}}),
]


@pytest.mark.parametrize(("what", "given"), BLANK)
def test_an_empty_path_is_named_by_its_argument(pipe, what, given):
    with pytest.raises(CapHumanError, match=f"^{what} must not be empty; it is the path of"):
        pipe(prompt="a photo", **given)


def test_empty_paths_of_functions(pipe):
    for photo in ("", " ", "\n"):
        with pytest.raises(PhotoError, match="^the name of a photo must not be empty"):
            pipe.person(photo)
        with pytest.raises(CapHumanError, match="^the model must not be empty"):
            caphuman_jax.load(photo)
        with pytest.raises(PhotoError, match="^the sequence must not be empty"):
            next(frames(photo))
