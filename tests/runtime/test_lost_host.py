"""Which errors of one process of several mean that another is gone."""

import errno

import jax
import pytest

from caphuman_jax.errors import SettingError
from caphuman_jax.runtime.distributed import is_lost_host

# What Orbax makes of any failure while hosts wait for each other's part of a checkpoint.
ORBAX = TimeoutError("Timed out while waiting for async_write_complete barrier.")


@pytest.mark.parametrize(
    "error, lost",
    [
        (ORBAX, True),
        (RuntimeError("UNAVAILABLE: Connection reset by peer"), True),
        (OSError(errno.ENOSPC, "No space left on device", "barrier"), False),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "barrier"), False),
        (SettingError("heartbeat"), False),
        (ValueError("bad"), False),
    ],
)
def test_errors_of_one_process_of_two(error, lost, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert is_lost_host(error) == lost


def test_one_process_loses_no_other():
    assert not is_lost_host(ORBAX)
