"""`caphuman status`: how a training run is doing, from its work folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman status`."""
    parser.add_argument(
        "workdir", metavar="WORKDIR", help="work folder of a run, or its URL in a bucket"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of stages")
    parser.add_argument(
        "--follow", type=float, metavar="SECONDS", help="repeat until the run has finished"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the status; the exit code is 0, whatever the run does."""
    from caphuman_jax.launch import status

    while True:
        stages = status.read(args.workdir)
        if args.json:
            print(json.dumps([dataclasses.asdict(stage) for stage in stages], indent=1))
        else:
            print(*(line for stage in stages for line in status.lines(stage)), sep="\n", flush=True)
        if args.follow is None or stages[-1].state == "finished":
            return 0
        time.sleep(args.follow)
