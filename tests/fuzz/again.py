"""Inputs that once were findings, once more: `python -m fuzz.again [READER/NAME …]`.

In a process of its own: in pytest's, what earlier tests left may be collected while an input is
read. That takes time and memory, and what a limit raises meanwhile is lost, or ends pytest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuzz import engine
from fuzz.readers import READERS

PATH = Path(__file__).parents[1]
"""Where Python finds `fuzz`."""


def reports(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """READER/NAME and what was found, "" if nothing, by child processes. One that dies is a finding
    of the input it read, and the next goes on behind that.
    """
    left = list(names)
    while left:
        command = [sys.executable, "-m", "fuzz.again", *left]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as child:
            for line in child.stdout:
                name, found = json.loads(line)
                left.remove(name)
                yield name, found
        if child.returncode and left:
            yield left.pop(0), f"the process died ({child.returncode})"


def environment(path: Path = PATH) -> dict[str, str]:
    """Variables of a process that finds the `fuzz` in `path`."""
    paths = [str(path), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def read_again(name: str, scratch: Path) -> str:
    """What one of `engine.regressions` does now: "" for a value or an error of the project."""
    data, reader = engine.regressions()[name](), name.partition("/")[0]
    run = READERS[reader].make(scratch)
    with contextlib.suppress(Exception):  # readers import late, which is not what they take
        run(engine.seeds(reader)[0])
    try:
        with engine.limited_time(2 * engine.SECONDS), engine.limited_memory():
            engine.outcome(run, data)
    except engine.Finding as finding:
        return f"{finding.place}: {finding}"
    except engine.Hang as hang:  # between the reader's end and the limit's
        return f"Hang: {hang}"
    return ""


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.simplefilter("ignore")  # of the decoders, about damaged files
    logging.disable(logging.CRITICAL)
    for name in sys.argv[1:] or engine.regressions():
        with tempfile.TemporaryDirectory(prefix="caphuman-fuzz-") as folder:
            print(json.dumps([name, read_again(name, Path(folder))]), flush=True)


if __name__ == "__main__":
    main()
