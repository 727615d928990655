import subprocess
import sys

import pytest

from caphuman_jax.errors import DataError
from caphuman_jax.io import folder_lock

HOLDER = """
import sys
from pathlib import Path
from caphuman_jax.io import folder_lock
with folder_lock.held(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_it_and_its_end_releases_it(tmp_path):
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="taken"), folder_lock.held(lock, "taken"):
            raise AssertionError("two hold it")
        other.kill()
        other.wait()
    with folder_lock.held(lock, "taken"):
        pass
