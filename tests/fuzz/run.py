"""`make fuzz N=…`: every reader on N inputs, each in a child process; prints a table.

    python -m fuzz.run --inputs 100000 [READER …]        (with tests/ on PYTHONPATH)

A finding is shrunk and written to tests/fuzz/regressions/READER; from then on it is a fast test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fuzz import engine
from fuzz.readers import READERS
from fuzz.worker import read_current

# Seconds on one input in which the interpreter does not even get to raise Hang: of the processor's
# time, and by the clock.
_BUSY, _STILL = 30, 5 * engine.STILL
_MOST_DEATHS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each reader")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most, for each reader")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    unknown = [name for name in args.readers if name not in READERS]
    if unknown:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    print(_versions(), flush=True)
    print("| reader | inputs | inputs/s | distinct outcomes | findings |\n|---|---|---|---|---|")
    open_findings = 0
    for name in args.readers or READERS:
        state = fuzz(name, args.inputs, args.seed, args.seconds)
        rate = state["inputs"] / max(state["seconds"], 1e-9)
        print(
            f"| {name} | {state['inputs']:,} | {rate:,.0f} | {len(state['outcomes'])} | "
            f"{len(state['findings'])} |",
            flush=True,
        )
        for place, what in state["findings"].items():
            print(f"    {place}: {what}", flush=True)
        open_findings += len(state["findings"])
    return 1 if open_findings else 0


def fuzz(name: str, inputs: int, seed: int, seconds: float) -> dict:
    """What a reader did, over as many child processes as it takes."""
    total = {"inputs": 0, "seconds": 0.0, "outcomes": set(), "findings": {}}
    for death in range(_MOST_DEATHS):
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            left = inputs - total["inputs"]
            code = _child(name, left, seed + death, seconds - total["seconds"], state)
            if not state.exists():
                total["findings"]["start"] = f"the process did not start (exit code {code})"
                return total
            one = json.loads(state.read_text())
            total["inputs"] += one["inputs"]
            total["seconds"] += one["seconds"]
            total["outcomes"] |= set(one["outcomes"])
            total["findings"] |= one["findings"]
            if code == 0:
                break
            if code != "hang" and int(code) > 0:
                raise RuntimeError(f"the fuzzer of {name} failed (exit code {code}): see above")
            data = read_current(state.with_suffix(".input"))
            kept = engine.keep(name, data).name
            total["findings"][f"death {code} {kept}"] = f"the process died ({code}) [{kept}]"
    return total


def _child(name: str, inputs: int, seed: int, seconds: float, state: Path) -> int | str:
    command = [sys.executable, "-m", "fuzz.worker", name, f"--inputs={inputs}", f"--seed={seed}"]
    command += [f"--state={state}", f"--seconds={seconds}"]
    log = open(state.with_suffix(".log"), "wb")
    child = subprocess.Popen(command, stdout=log, stderr=log)
    current, before = state.with_suffix(".input"), b""
    since = busy = 0.0
    while True:
        try:
            code = child.wait(1)
            if code or not state.exists():
                tail = state.with_suffix(".log").read_bytes()[-1500:].decode(errors="replace")
                print(tail, file=sys.stderr)
            return code
        except subprocess.TimeoutExpired:
            now = current.read_bytes() if current.exists() else b""
            if now != before or not now:
                before, since, busy = now, time.monotonic(), _processor_time(child.pid)
            elif time.monotonic() - since > _STILL or _processor_time(child.pid) - busy > _BUSY:
                child.kill()
                child.wait()
                return "hang"


def _processor_time(pid: int) -> float:
    """Seconds that a process has computed (Linux; elsewhere 0)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _versions() -> str:
    parts = [f"Python {platform.python_version()}"]
    for package in ("atheris", "numpy", "pillow", "opencv-python-headless", "onnxruntime",
                    "safetensors", "array_record"):  # fmt: skip
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"without {package}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
