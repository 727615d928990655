"""For every test: 8 simulated devices, checked shapes, no silent dtype promotion, and programs
compiled fast rather than compiled to be fast, once for all processes of a session.
"""

import ctypes
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # flame_standin, shape_checks, tiny_model, xla_flags

import xla_flags  # noqa: E402

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.EIGHT_DEVICES}"
# LLVM's optimization takes up to two thirds of compiling, and the networks here are tiny. XLA's own
# passes all run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# pytest's workers and the commands that tests start share what is compiled: they inherit these. A
# folder that the caller names stays for the next session.
_OWN_PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _OWN_PROGRAMS = tempfile.mkdtemp(prefix="caphuman-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN_PROGRAMS
    os.environ.setdefault("CAPHUMAN_CACHE", _OWN_PROGRAMS)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# hypothesis' plugin would import it when the session ends, and Python 3.11 cannot always parse a
# file that deep in the stack (SystemError: AST constructor recursion depth mismatch).
import hypothesis  # noqa: E402, F401
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Shapes of annotations are checked at every call. Before anything of these rooms is imported.
jaxtyping.install_import_hook(
    [f"caphuman_jax.{room}" for room in ("nn", "models", "diffusion", "head", "training")],
    "shape_checks.check",
)

from tiny_model import (  # noqa: E402, F401
    astronaut,
    astronaut_file,
    person,
    pipe,
    tiny_folder,
    tiny_params,
    two_faces,
)

# A shell that starts the tests in the background has SIGINT ignored, and every child inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# JAX allocates many objects that live long; Python's collector would search them again and again.
gc.set_threshold(50_000, 20, 50)


_LONGEST = (
    "training/test_mini_step.py",
    "test_docs_long.py",
    "cli/test_handing_over.py",
    "pipeline/test_people.py",
    "pipeline/test_pipeline.py",
    "training/test_mini.py",
    "cli/test_generate.py",
    "jobs/test_sample.py",
    "data_pipeline/prepare/test_prepare.py",
    "test_docs.py",
    "weights/test_use.py",
    "training/test_autoencoder.py",
    "studio/test_page.py",
    "training/test_sd15.py",
    "weights/test_photos_against_diffusers.py",
    "cli/test_inputs_through_verbs.py",
    "diffusion/test_sampler_coefficients.py",
    "test_package.py",
    "data_pipeline/loading/test_loader.py",
    "launch/test_bucket_run.py",
    "examples/test_quickstart.py",
    "test_compile.py",
    "multiprocess/test_processes.py",
    "multiprocess/test_evaluate.py",
    "diffusion/test_text_to_image.py",
    "io/test_bucket_protocols.py",
    "pipeline/test_deca.py",
    "parity/test_networks.py",
    "evaluation/test_command.py",
    "evaluation/test_kinds.py",
    "evaluation/test_small_faces.py",
    "pipeline/test_small_faces.py",
    "evaluation/test_ablations.py",
    "studio/test_api.py",
    "parity/test_control_step.py",
)
"""Files whose fast or slow tests take longest. They are run first, so that no process waits for
another at the end.
"""


def pytest_collection_modifyitems(items):
    """Files in the order in which they are run; each file's tests keep theirs."""
    folder = Path(__file__).parent
    rank = {folder / name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(tryfirst=True)  # before what the test needs is set up
def pytest_runtest_setup(item):
    """Slow tests that would begin after $CAPHUMAN_TESTS_END (seconds since 1970) are named instead
    of run: see .ci/run.
    """
    end = float(os.environ.get("CAPHUMAN_TESTS_END", "inf"))
    if time.time() > end and item.get_closest_marker("slow"):
        pytest.skip(f"no time was left for {item.nodeid}")


def pytest_unconfigure(config):
    """The session's compiled programs are deleted by the process that made their folder."""
    if _OWN_PROGRAMS:
        shutil.rmtree(_OWN_PROGRAMS, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def modest_memory():
    """A process that holds more than 3 GB after a file forgets the programs that it has compiled:
    several run side by side.
    """
    yield
    statistics = Path("/proc/self/statm")  # Linux
    if (
        statistics.exists()
        and int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 3e9
    ):
        jax.clear_caches()
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc keeps what was freed otherwise


SHAPES_CHECKED = ("nn", "models", "diffusion", "head", "person", "face", "training")
RANKS_CHECKED = ("nn", "models", "diffusion", "head", "training", "face", "pipeline")
"""Rooms in whose tests shapes are checked, and arrays of fewer axes are broadcast explicitly."""


@pytest.fixture(autouse=True)
def strict_arrays(request):
    """Mixing dtypes by accident is an error in every test; also see the rooms above."""
    room = request.path.relative_to(Path(__file__).parent).parts[0]
    ranks = "raise" if room in RANKS_CHECKED else "allow"
    jaxtyping.config.update("jaxtyping_disable", room not in SHAPES_CHECKED)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion(ranks):
        yield
