"""The pipeline in a process by itself, with its workers: whoever starts it can end them all, and
they end when whoever started it is gone.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import sys
import threading
import time

from caphuman_jax.errors import CapHumanError, DataError

# Not `-m`: a class of __main__ would not reach the workers by its name.
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from data_pipeline.prepare.worker_process import main; sys.exit(main())",
)
_MARKED = re.compile(r"caphuman says<<(.*?)>>", re.DOTALL)
_LOOK = 0.5  # seconds
_FAILED = 2


def main() -> int:
    """Run the pickled (Job, Beam's arguments) on standard input; 2 for an error that is told,
    marked, on standard error.
    """
    if os.getpgrp() == os.getpid():
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job, arguments = pickle.load(sys.stdin.buffer)
    from data_pipeline.prepare import beam_pipeline

    logging.getLogger().setLevel(logging.WARNING)
    beam_pipeline.one_thread()
    threading.excepthook = _thread_failed
    try:
        beam_pipeline.run(job, arguments)
    except CapHumanError as error:
        print(marked(error), file=sys.stderr)
        return _FAILED
    return 0


def marked(error: Exception) -> str:
    """An error's text, such that `told` finds it in what a runner makes of it: text is all that
    runners pass on.
    """
    return f"caphuman says<<{error}>>"


def told(output: str) -> str | None:
    """The line for a person in the output, if there is one."""
    found = _MARKED.findall(output)
    return " ".join(found[-1].split()) if found else None


def _thread_failed(failure) -> None:
    """End where the local runner would wait for ever: one of its threads saw that its worker is
    gone.
    """
    threading.__excepthook__(failure)
    if "Worker subprocess exited" in str(failure.exc_value):
        print(
            marked(
                DataError(
                    "a worker was ended from outside, most likely for lack of memory; the same "
                    "command, with fewer --workers, goes on "
                    "where it stopped"
                )
            ),
            file=sys.stderr,
            flush=True,
        )
        os._exit(_FAILED)


def _end_with(parent: int) -> None:
    """Kill this process's group once `parent` is gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.killpg(0, signal.SIGKILL)
