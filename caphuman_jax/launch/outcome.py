"""From the exit codes of a job's hosts to one code for the job."""

from __future__ import annotations

from collections.abc import Sequence

from caphuman_jax.errors import INTERRUPTED, RESTART

OWN_REASONS = (2, 1, 70, 3, INTERRUPTED)
"""Codes that another start does not change, the most telling first: settings, NaN, a fault of the
program, failed pictures, Ctrl-C.
"""


def job_code(codes: Sequence[int]) -> int:
    """The code of a job whose hosts left with `codes`, negative for signals as in subprocess.

    0 if all finished. One host with a reason of its own decides for all: the others only lost it.
    Everything else is RESTART: hosts that were told to stop (75), that lost another host (134, by
    JAX), or that were killed (137).
    """
    if not any(codes):
        return 0
    return next((code for code in OWN_REASONS if code in codes), RESTART)


def shell_code(code: int) -> int:
    """The code as a shell shows it: 128 + the signal's number."""
    return code if code >= 0 else 128 - code
