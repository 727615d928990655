"""The short form of `make faults`: two kills and a full disk, for the verbs that are quick."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).with_name("matrix.py")


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    found = subprocess.run(
        [sys.executable, str(MATRIX), "--state", str(tmp_path), "--short"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, f"{found.stdout[-6000:]}\n{found.stderr[-3000:]}"
    assert " 0 losses" in found.stdout
