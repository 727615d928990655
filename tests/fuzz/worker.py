"""A child process that runs one reader on many inputs: `python -m fuzz.worker READER …`.

With atheris, inputs that reach new code are kept and mutated further; without, they are mutated
from the corpus alone. What happened is in STATE (a JSON file), and the input that is being read in
STATE.input, so that the parent knows it where this process dies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import mmap
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

try:
    import atheris
except ImportError:  # it has wheels for some platforms only
    atheris = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader")
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # nothing is written elsewhere
    with tempfile.TemporaryDirectory(dir=_fast_folder(), prefix="caphuman-fuzz-") as folder:
        _run(args, Path(folder))


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _run(args: argparse.Namespace, scratch: Path) -> None:
    with (
        atheris.instrument_imports(include=["caphuman_jax", "data_pipeline"])
        if atheris is not None
        else contextlib.nullcontext()
    ):
        engine, reader, run = _prepared(args.reader, scratch)
        seeds = engine.seeds(reader.name)
        for data in seeds:  # readers import late: instrumented, and before the limits
            with contextlib.suppress(Exception):  # looked at below
                run(data)
    current = _Current(args.state.with_suffix(".input"), engine.LARGEST)
    watch = engine.Watch(scratch)
    engine.limit_memory()
    count, found, outcomes = 0, {}, set()
    begin = time.monotonic()

    def save() -> None:
        seconds = time.monotonic() - begin
        args.state.write_text(
            json.dumps(
                {
                    "inputs": count,
                    "seconds": seconds,
                    "outcomes": sorted(outcomes),
                    "findings": found,
                    "guided": atheris is not None,
                }
            )  # fmt: skip
        )

    def guarded(data: bytes) -> object:
        with engine.limited_time():
            watch.on = True
            try:
                return run(data)
            finally:
                watch.on = False

    def one(data: bytes) -> None:
        nonlocal count
        current.set(data)
        count += 1
        try:
            kind, finding = engine.outcome(guarded, data), None
            if len(outcomes) < 10_000:
                outcomes.add(kind)
        except engine.Finding as error:
            finding = (error.place, str(error))
        # Outside of `except`, whose traceback holds what the reader held.
        if finding and finding[0] not in found:
            place, what = finding
            found[place] = what
            small = engine.shrink(guarded, data, place)
            found[place] += f" [{engine.keep(reader.name, small).name}]"
            save()
        if count % 1000 == 0:
            save()
        if count >= args.inputs or time.monotonic() - begin > args.seconds:
            save()
            shutil.rmtree(scratch, ignore_errors=True)
            os._exit(0)

    save()
    if atheris is None:
        for data in engine.inputs(reader, args.inputs, args.seed):
            one(data)
        os._exit(0)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:  # libFuzzer forgets seeds that reach no code of this project's own
            data = rng.choice(seeds)
        if rng.random() < 0.2:
            return atheris.Mutate(data, most)
        try:
            return reader.mutate(rng, data)[:most]
        except Exception:  # noqa: BLE001 - such as a number that JSON cannot write
            return atheris.Mutate(data, most)

    corpus = str(engine.CORPUS / reader.name)
    options = ["-rss_limit_mb=0", "-timeout=0", f"-seed={args.seed + 1}",
               f"-max_len={engine.LARGEST}", "-verbosity=0", "-len_control=0", "-detect_leaks=0",
               "-print_final_stats=0"]  # fmt: skip
    empty = scratch / "grown"
    empty.mkdir()
    atheris.Setup([sys.argv[0], *options, str(empty), corpus], one, custom_mutator=mutated)
    atheris.Fuzz()


def _prepared(name: str, scratch: Path):
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from fuzz import engine
    from fuzz.readers import READERS

    return engine, READERS[name], READERS[name].make(scratch)


class _Current:
    """The input that is being read, in a file that outlives the process."""

    def __init__(self, path: Path, most: int):
        with open(path, "wb") as file:
            file.truncate(most + 8)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), most + 8)
        self._most = most

    def set(self, data: bytes) -> None:
        data = data[: self._most]
        self._map[:8] = len(data).to_bytes(8, "little")
        self._map[8 : 8 + len(data)] = data


def read_current(path: Path) -> bytes:
    """The input that a dead process was reading."""
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


if __name__ == "__main__":
    main()
