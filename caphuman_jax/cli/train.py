"""`caphuman train`: from a configuration and records to checkpoints and a model folder, on one
device or many hosts.
"""

from __future__ import annotations

import functools
import logging
import os
import sys

from caphuman_jax.cli.argument_types import count, positive
from caphuman_jax.cli.console import resumable
from caphuman_jax.errors import RESTART


def add_arguments(parser) -> None:
    """The command's options; `--config.NAME=VALUE` overrides an entry of the configuration."""
    parser.add_argument(
        "--config",
        default="mini",
        metavar="NAME|FILE.py",
        help="name of a file in configs/ (without .py), or the path of your own; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR|URL",
        help="checkpoints, metrics and the finished model go here: a folder, gs://… or s3://…; the "
        "same folder resumes",
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        help="save and stop after N minutes; the same command resumes",
        metavar="N",
    )
    parser.add_argument(
        "--profile",
        type=count,
        default=0,
        metavar="STEPS",
        help="write a trace of that many steps to WORKDIR/profile",
    )
    several = parser.add_argument_group(
        "several hosts",
        "each runs the same command; found automatically inside Slurm's srun and on GKE's TPU slices",  # noqa: E501
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument(
        "--process-id", type=int, metavar="N", help="number of this process, from 0"
    )
    several.add_argument("--process-count", type=int, metavar="N", help="number of all processes")
    several.add_argument(
        "--multihost", action="store_true", help="let JAX find the other hosts (TPU VMs)"
    )
    parser.add_argument(
        "--override",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another way to write --config.NAME=VALUE, for example --config.data=records "
        "--config.training.batch_size=64",
    )


def run(args) -> int:
    """Trains; returns the exit code: 0 finished or out of time, 1 NaN, 75 "start me again", 130
    interrupted.
    """
    with resumable():
        return _train(args)


def _train(args) -> int:
    from caphuman_jax.runtime import distributed

    distributed.join(
        distributed.distributed_arguments(
            os.environ,
            coordinator=args.coordinator,
            process_id=args.process_id,
            process_count=args.process_count,
        )
        if not args.multihost
        else {}
    )
    with distributed.left_on_error():
        try:
            return _train_here(args)
        except Exception as error:
            if distributed.is_lost_host(error):
                _leave_after_loss(error)
            raise


def _leave_after_loss(error: BaseException) -> None:
    from caphuman_jax.runtime import distributed

    why = " ".join(str(error).split())[:200]
    print(
        f"caphuman: another host was lost ({why}); the same command resumes from the last "
        f"checkpoint",
        file=sys.stderr,
    )
    distributed.leave(RESTART, failed=True)


def _quiet_orbax(record: logging.LogRecord) -> bool:
    """Leaves Orbax's tracebacks out: what went wrong is reported in one line.

    Where one host of several cannot write, its threads wait for the others and these for it. So the
    thread that writes ends the process.
    """
    import jax

    error = record.exc_info[1] if record.exc_info else None
    if error is not None and record.threadName == "async_save" and jax.process_count() > 1:
        from caphuman_jax.runtime import distributed

        if distributed.is_lost_host(error):
            _leave_after_loss(error)
        why = " ".join(str(error).split())[:300]
        print(
            f"caphuman: error: a checkpoint cannot be written ({why}); is the disk full? "
            f"Make room, and run the same command again",
            file=sys.stderr,
        )
        distributed.leave(2, failed=True)
    return record.levelno >= logging.CRITICAL


def _train_here(args) -> int:
    import jax

    from caphuman_jax.io import buckets
    from caphuman_jax.runtime.compile_cache import keep_compiled
    from caphuman_jax.training import run, run_config

    keep_compiled()  # a run that resumes compiles the same step, which takes a minute or more
    logging.getLogger("absl").addFilter(_quiet_orbax)
    config = run_config.read_config(args.config, args.overrides)
    on_cpu = jax.default_backend() == "cpu" and config.recipe in run_config.RECIPES
    if on_cpu and jax.process_index() == 0:
        print(
            f"training on a CPU, in {config.training.dtype}: enough to try out a small "
            "configuration. The full model needs a GPU; on a CPU a step of mini takes a minute or "
            "more, and all of its steps take weeks (docs/training.md)",
            flush=True,
        )
    with buckets.local_folder(args.workdir, _is_mine) as (workdir, mirror):
        return run.train(
            args.config,
            config,
            workdir,
            minutes=args.minutes,
            profile=args.profile,
            mirror=mirror,
            log=functools.partial(print, flush=True),  # into files and pipes, too
        )


def _is_mine(name: str) -> bool:
    """Whether this host copies a file of a work folder to its bucket."""
    import jax

    return jax.process_index() == 0 or name.split("/")[0] == "hosts" or name.startswith("nan-")
