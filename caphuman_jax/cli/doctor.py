"""`caphuman doctor`: checks this machine, or all hosts of a job, before work is started on it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os

_MARKS = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman doctor`."""
    parser.add_argument(
        "--workdir", default="", metavar="DIR|URL", help="also check a folder or a bucket"
    )
    parser.add_argument("--no-face", action="store_true", help="do not make a picture")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--multihost", action="store_true", help="let JAX find the other hosts (TPU VMs)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints what was found; the exit code is 1 where a check failed, else 0."""
    from caphuman_jax.runtime import distributed

    distributed.join(
        {} if args.multihost else distributed.distributed_arguments(os.environ), os.environ
    )
    import jax

    from caphuman_jax.launch import doctor
    from caphuman_jax.runtime.compile_cache import keep_compiled

    keep_compiled()
    logger = logging.getLogger("caphuman_jax")
    before = logger.level
    logger.setLevel(logging.ERROR)  # a finding says what a warning would
    try:
        found = doctor.examine(args.workdir, not args.no_face)
    finally:
        logger.setLevel(before)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        host = f"host {jax.process_index()}: " if jax.process_count() > 1 else ""
        for finding in found:
            print(f"{host}{_MARKS[finding.state]} {finding.name:<12} {finding.text}")
    return int(any(finding.state == doctor.FAILED for finding in found))
