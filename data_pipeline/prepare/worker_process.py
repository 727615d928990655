"""The pipeline in a process of its own, with its workers: the process that starts it can end them
all, and they end when that process is gone.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import sys
import threading
import time

from caphuman_jax.errors import CapHumanError, DataError
from data_pipeline.prepare.error_text import wrap_error

_CALL = "import sys; from data_pipeline.prepare.worker_process import {0}; sys.exit({0}())"
# Not `-m`: a class of __main__ would not reach the workers by its name.
COMMAND = (sys.executable, "-c", _CALL.format("main"))
CHECK = (sys.executable, "-c", _CALL.format("check"))
_INTERVAL = 0.5  # seconds
_FAILED = 2


def main() -> int:
    """Run the pickled (Job, Beam's arguments) from standard input.

    Returns:
        The exit code; 2 for an error whose wrapped message is on standard error.
    """
    if os.getpgrp() == os.getpid():
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job, arguments = pickle.load(sys.stdin.buffer)
    # Here, since it takes seconds: the thread above must watch by then, and the process that starts
    # this one needs no Beam.
    from data_pipeline.prepare import beam_pipeline

    logging.getLogger().setLevel(logging.WARNING)
    beam_pipeline.one_thread()
    threading.excepthook = _thread_failed
    try:
        beam_pipeline.run(job, arguments)
    except CapHumanError as error:
        print(wrap_error(error), file=sys.stderr)
        return _FAILED
    return 0


def check() -> int:
    """Check Beam's arguments, a JSON list from standard input. Here, since Beam takes seconds to
    import and changes how its process logs.

    Returns:
        The exit code; 2 for an error whose wrapped message is on standard error.
    """
    from data_pipeline.prepare import beam_pipeline

    try:
        beam_pipeline.check_arguments(json.load(sys.stdin))
    except CapHumanError as error:
        print(wrap_error(error), file=sys.stderr)
        return _FAILED
    return 0


def _thread_failed(failure) -> None:
    """Exit where the local runner would wait forever: one of its threads saw that its worker is
    gone.
    """
    threading.__excepthook__(failure)
    if "Worker subprocess exited" in str(failure.exc_value):
        print(
            wrap_error(
                DataError(
                    "a worker was killed, most likely for lack of memory; run the same command "
                    "again with fewer --workers to resume"
                )
            ),
            file=sys.stderr,
            flush=True,
        )
        os._exit(_FAILED)


def _end_with(parent: int) -> None:
    """Kill this process's group once `parent` is gone."""
    while os.getppid() == parent:
        time.sleep(_INTERVAL)
    os.killpg(0, signal.SIGKILL)
