"""`caphuman identity`: photos of one person → a file that can be used instead of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from caphuman_jax.cli import console
from caphuman_jax.cli.generate import add_combine_argument
from caphuman_jax.errors import CapHumanError, SettingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman identity`."""
    parser.add_argument(
        "--reference",
        metavar="PHOTO",
        nargs="+",
        required=True,
        help="photos of one person; the head is the first photo's",
    )
    parser.add_argument(
        "--face", type=int, metavar="N", help="number of the face in the photos, 0 the largest"
    )
    add_combine_argument(parser, default="mean")
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER",
        help="the model that the file is for, default mini",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.identity")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> None:
    """Measure the photos and write the file. Raises CapHumanError."""
    from caphuman_jax.person import identity_file
    from caphuman_jax.person.person import combine_references, measure_references
    from caphuman_jax.pipeline.loading import load  # brings JAX, which `--help` does not need

    if args.out.suffix != identity_file.ENDING:
        raise SettingError(
            f"--out {args.out}: the name of an identity file ends in {identity_file.ENDING}"
        )
    if args.out.exists() and not args.overwrite:
        raise SettingError(f"{args.out} already exists; choose another name or add --overwrite")
    pipe = load(args.model)
    people = measure_references(args.reference, lambda photo: pipe.person(photo, args.face))
    person = combine_references(people, args.combine)
    try:
        identity_file.save(args.out, person, pipe.head_name)
    except OSError as error:
        reason = error.strerror or error
        raise CapHumanError(f"the identity cannot be written to {args.out} ({reason})") from error
    console.check_there([args.out], args.out.parent)
    recognizer = person.known_by.partition(" and ")[0]
    print(
        f"{args.out}: {person.name}, fit {person.confidence:.2f}; for models with the recognizer "
        f"{recognizer} and the head model {pipe.head_name}"
    )
