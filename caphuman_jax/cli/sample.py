"""`caphuman sample`: a file of jobs → pictures in a folder, in full batches, on any number of
machines; it can be interrupted and resumed.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

from caphuman_jax.cli import console, sampling_arguments
from caphuman_jax.errors import SettingError
from caphuman_jax.runtime.progress import progress_bar

SOME_FAILED = 3
"""Exit code where all jobs were tried and some of them failed."""
_MOST_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman sample`."""
    what = parser.add_argument_group(
        "jobs: those of a file, or every combination of people, prompts and heads"
    )
    what.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE.jsonl",
        help=(
            'one job per line: {"reference": "me.jpg", "prompt": "a photo", "head": {"yaw": '
            '20}, "num_images": 4, …}, with any setting of generate'
        ),
    )
    what.add_argument(
        "--identities",
        type=Path,
        metavar="DIR|FILE",
        help="photos or identity files: a folder, one file, or a file with one path per line",
    )
    what.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a file with one prompt per line"
    )
    what.add_argument(
        "--heads",
        type=Path,
        metavar="FILE.jsonl|json",
        help=(
            'a file with one head per line, such as {"yaw": 20}, where {} is the person\'s '
            "own head; or a head.json or sequence.json of `caphuman head`"
        ),
    )
    what.add_argument(
        "--default",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=(
            "value of a field for all jobs that do not set it: num_images=3, steps=20, "
            "guidance_scale=5 …"
        ),
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="only check the jobs and report errors, or the number of pictures",
    )

    how = parser.add_argument_group("model and devices")
    batch = (
        "pictures at a time on each device; default: 1 on a CPU or with --memory low or least, "
        "else 8"
    )
    sampling_arguments.add_model_arguments(how, batch)
    how.add_argument(
        "--fsdp",
        action="store_true",
        help=(
            "divide the weights among the devices of this machine: less memory, more communication"
        ),
    )
    how.add_argument(
        "--share",
        metavar="I/N",
        help=(
            "make only part I of N (from 1); needed only where the shared folder has no file locks"
        ),
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the pictures; rerun the same command to resume",
    )
    output.add_argument(
        "--format", choices=("png", "jpeg", "array_record"), default="png", help="default png"
    )
    output.add_argument(
        "--retry-failed", action="store_true", help="try again to make the pictures that failed"
    )


def run(args: argparse.Namespace) -> int:
    """Make the pictures.

    Returns:
        The exit code: 0, SOME_FAILED, or that of an interruption.

    Raises:
        CapHumanError: wrong jobs or arguments.
    """
    console.quiet_libraries()
    console.check_batch(args.batch)
    if args.out is not None:
        console.check_writable(args.out)
    from caphuman_jax.jobs import jobs
    from caphuman_jax.jobs.order import Plan
    from caphuman_jax.jobs.validate import Checker
    from caphuman_jax.weights import model_folder

    share = _share(args.share)
    with console.notices(once=True):
        checker = Checker(model_folder.read_config(model_folder.find_model(args.model)))
        asked = _jobs(args, jobs, checker)
        if asked.problems:
            shown = asked.problems if args.check else asked.problems[:_MOST_SHOWN]
            print(*(f"caphuman: {problem}" for problem in shown), sep="\n", file=sys.stderr)
            rest = (
                f" ({len(asked.problems) - len(shown)} more: --check shows all)"
                if len(shown) < len(asked.problems)
                else ""
            )
            raise SettingError(
                f"{len(asked.problems)} wrong "
                f"{'entry' if len(asked.problems) == 1 else 'entries'}{rest}; nothing was made"
            )
        if args.check:
            _announce(asked.pictures, asked.jobs, asked.groups)
            return 0
        plan = Plan(asked.jobs)
        _announce(plan.total, len(asked.jobs), plan.groups)
        if args.out is None:
            raise SettingError("--out DIR is required: the folder of the pictures")
        with console.resumable():
            return _make(args, asked, plan, share)


def _make(args, asked, plan, share) -> int:
    from caphuman_jax.jobs import multi_device
    from caphuman_jax.jobs.outputs import output
    from caphuman_jax.jobs.run_folder import RunFolder
    from caphuman_jax.jobs.runner import Runner
    from caphuman_jax.runtime.preemption import Preemption

    pipe, batch = multi_device.load(
        args.model, dtype=args.dtype, batch=args.batch, fsdp=args.fsdp, memory=args.memory
    )
    sampling_arguments.use_files(pipe, args)
    facts = {
        "jobs": asked.fingerprint,
        "weights": pipe.record["weights"],
        "LoRAs": pipe.record.get("loras", []),
        "embeddings": pipe.record.get("embeddings", []),
        "precision (--dtype)": pipe.record["dtype"],
        "memory setting (--memory)": pipe.record.get("memory"),
        "files (--format)": args.format,
        "units": plan.size,
    }
    run_folder = RunFolder(args.out, facts, plan.total, plan.units)
    if args.retry_failed:
        run_folder.reopen_failed()
    place = output(args.out, args.format)
    # Where nothing else is left to do, every picture is read.
    deep = len(run_folder.done_units()) == plan.units
    reopened = run_folder.reopen_changed(lambda line: place.sound(line, deep))
    if reopened:
        print(
            f"{reopened} {'unit has' if reopened == 1 else 'units have'} pictures that are missing "
            f"or were changed; they are made again",
            file=sys.stderr,
        )
    numbers = {job.id: job.number for job in asked.jobs}
    started = time.perf_counter()
    with Preemption() as stop, _Progress(plan.total, run_folder) as progress:
        runner = Runner(
            pipe,
            plan,
            run_folder,
            place,
            batch,
            progress.report,
            progress.compiling,
            share,
            lambda: stop.reason is not None,
        )
        runner.run()
    made, failed = run_folder.write_index(numbers.__getitem__)
    rate = progress.rate
    print(
        f"{progress.made} pictures made in {time.perf_counter() - started:.1f} "
        f"s{f' ({rate:.2f}/s after the first)' if rate else ''}; "
        f"{made} of {plan.total} are done, {failed} failed",
        file=sys.stderr,
    )
    if made + failed == plan.total:
        run_folder.tidy()
    run_folder.close()
    if stop.reason is not None:
        print("caphuman: stopped; rerun the same command to resume", file=sys.stderr)
        return stop.exit_code
    print(args.out / "index.jsonl")
    if failed:
        print(
            f"caphuman: {args.out / 'failed.jsonl'} lists what failed and why; --retry-failed "
            f"retries it",
            file=sys.stderr,
        )
    return SOME_FAILED if failed else 0


def _announce(pictures: int, jobs: int, groups: int) -> None:
    kinds = f"{groups} {'group' if groups == 1 else 'groups'} of settings"
    print(f"{pictures} pictures in {jobs} jobs, of {kinds}", file=sys.stderr)


def _jobs(args, jobs, checker):
    """The jobs; with --check their number alone."""
    take = jobs.tally if args.check else jobs.collect
    defaults = jobs.parse_defaults(args.default, checker)
    lists = (args.identities, args.prompts, args.heads)
    if args.jobs is not None:
        if any(lists):
            raise SettingError("either --jobs, or --identities with --prompts and --heads")
        return take(jobs.file_entries(args.jobs), checker, defaults, args.jobs.name)
    if args.identities is None or (args.prompts is None and "prompt" not in defaults):
        raise SettingError(
            "--jobs FILE.jsonl is required, or --identities with --prompts (and --heads)"
        )
    return take(jobs.product_entries(*lists), checker, defaults, args.identities.name)


def _share(text: str | None) -> tuple[int, int]:
    """ "2/4" → (1, 4)."""
    if text is None:
        return 0, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise SettingError(
            f"--share takes a part and how many there are, such as 1/4, not {text!r}"
        )
    return int(part) - 1, int(parts)


class _Progress:
    """A progress line; a context manager."""

    def __init__(self, total: int, run_folder):
        self.made, self._failed, self._total, self._folder = 0, 0, total, run_folder
        self.bar: Any = None  # tqdm's
        self._guard, self._compile, self._first, self._last = threading.Lock(), 0.0, 0.0, 0.0

    @property
    def rate(self) -> float | None:
        """Pictures a second since the first one, so that compiling does not count; None if there
        are too few.
        """
        return (
            (self.made - 1) / (self._last - self._first)
            if self.made > 1 and self._last > self._first
            else None
        )

    def __enter__(self):
        made, failed = self._folder.counts()
        self._failed = failed
        self.bar = progress_bar(
            total=self._total, initial=made + failed, unit="picture", desc="sampling"
        )
        return self

    def __exit__(self, *_):
        self.bar.close()

    def report(self, made: int, failed: int, there: int) -> None:
        """Count more pictures; from any thread."""
        with self._guard:
            if made:
                self._last = time.perf_counter()
                self._first = self._first or self._last
            self.made += made
            self._failed += failed
            if self._failed:
                self.bar.set_postfix_str(f"{self._failed} failed", refresh=False)
            self.bar.update(made + failed + there)

    def compiling(self, stage: str, done: int, total: int) -> None:
        """See `conditioning.Progress`."""
        from tqdm import tqdm

        if stage == "compile" and done == 0:
            self._compile = time.perf_counter()
            tqdm.write(
                "preparing the sampler (compiled once for these shapes and settings) …",
                file=sys.stderr,
            )
        elif stage == "compile":
            tqdm.write(
                f"preparing the sampler: {time.perf_counter() - self._compile:.1f} s",
                file=sys.stderr,
            )
