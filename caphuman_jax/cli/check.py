"""`caphuman check`: what a model folder can do and what it lacks."""

from __future__ import annotations

import argparse
import json

_PHOTOS, _NO_PHOTOS = 0, 2

EPILOG = """exit code: 0 if the model can make pictures from photos; 2 if something that photos or
heads need is missing, or a file is damaged (the report says what)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman check`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="mini",
        help="a model folder, or a shipped model's name; default mini",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file and compare its checksum; a few seconds for each GB",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch a model that is named as ORG/NAME from the Hugging Face hub; every command "
        "finds it afterwards",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report.

    Returns:
        0 if the model makes pictures of photos, else 2.
    """
    from caphuman_jax.pipeline.model_report import inspect_model, report_lines
    from caphuman_jax.weights import model_folder

    if args.download:
        model_folder.find_model(args.model, download=True)
    found = inspect_model(args.model, args.verify)
    print(json.dumps(found, indent=1) if args.json else "\n".join(report_lines(found)))
    return _PHOTOS if found["photos"] else _NO_PHOTOS
