"""`caphuman compare`: how runs of `caphuman evaluate` differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from caphuman_jax.errors import CapHumanError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman compare`."""
    parser.add_argument(
        "runs",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="reports of caphuman evaluate on the same people, prompts and heads; all are compared "
        "with the first one",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="directory for comparison.html, .json and .csv; must be new or empty unless "
        "--overwrite; default: only the verdict is printed",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="names of the runs; default: their directories' names",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        help="measures to test; default: all. The correction for multiple tests counts only these, "
        "so choose them before you have seen the results",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of resampling; default: 0"
    )
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="with --report: leave out all pictures of people, the names of photos and paths, so "
        "that the comparison can be published",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison")


def run(args: argparse.Namespace) -> int:
    """Print the verdict, and write the page if asked to. Raises CapHumanError."""
    # Imported here because they import numpy, which `--help` does not need.
    from caphuman_jax.evaluation import comparison
    from caphuman_jax.evaluation.page import write
    from caphuman_jax.evaluation.scored_run import read_run

    if len(args.runs) < 2:
        raise CapHumanError("compare needs at least two reports of caphuman evaluate")
    if args.seed < 0:
        raise CapHumanError(f"--seed is a whole number from 0 on, not {args.seed}")
    if args.names and len(args.names) != len(args.runs):
        raise CapHumanError(f"--names gives {len(args.names)} names for {len(args.runs)} runs")
    report = args.report
    if args.no_pictures and not report:
        raise CapHumanError("--no-pictures goes with --report")
    if report and report.exists() and not args.overwrite:
        if not report.is_dir() or any(report.iterdir()):
            raise CapHumanError(
                f"{report} exists already; choose another directory or add --overwrite"
            )
    names = args.names or _names(args.runs)
    runs = [read_run(folder, name) for folder, name in zip(args.runs, names)]
    found = comparison.compare(runs, args.measures, args.seed)
    for line in comparison.verdict(found):
        print(line)
    for line in comparison.cautions(found):
        print(f"caution: {line}")
    if report:
        page = write.write_comparison(found, report, pictures=not args.no_pictures)
        print(f"{page} has all results")
    return 0


def _names(folders: list[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    paths = [folder.resolve() for folder in folders]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise CapHumanError(f"{folders[0]} is given twice")
