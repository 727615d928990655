"""`caphuman generate`: pictures of the person in a photo."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caphuman_jax.cli import console, head_arguments, person_argument, repeat, sampling_arguments
from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.errors import SettingError
from caphuman_jax.runtime import platforms

if TYPE_CHECKING:
    from caphuman_jax.pipeline.result import Result


EXAMPLES = """examples:
  caphuman generate --reference me.jpg --prompt "a photo of a smiling person" --yaw 20 --expression smile=0.8
  caphuman generate --reference me.jpg --prompt "a portrait photo" --head-from other.jpg --take pose,expression
  caphuman generate --person ref=me.jpg,yaw=15 --person ref=you.jpg,yaw=-15,expression=smile:0.8 --prompt "two people"
  caphuman generate --reference me.jpg --prompt "a photo" --sampler dpmpp_2m --steps 12 --num-images 4
  caphuman generate --repeat out/picture_02.png --reference me.jpg"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman generate`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument(
        "--reference",
        metavar="PHOTO",
        nargs="+",
        help="one photo or several of the person, or an identity file",
    )
    add_combine_argument(parser, default=None)
    parser.add_argument(
        "--person",
        metavar="ref=PHOTO,…",
        action="append",
        help=(
            "one of several people; give it once for each person, instead of --reference and the "
            "head options: ref=PHOTO (repeat for more photos), face=N, head=PHOTO, "
            "take=pose+expression, framing=photo, numbers=FILE.json, yaw=DEG, pitch=DEG, "
            "roll=DEG, expression=smile:0.8+jawOpen:0.3, light=left:0.8, position=X/Y/SIZE "
            "(people without a position are placed next to each other); prompt=TEXT: what this "
            "person's region shows; box=X0/Y0/X1/Y1 (from 0 to 1) or mask=FILE: the region"
        ),
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the picture shows")
    parser.add_argument(
        "--repeat",
        metavar="PICTURE",
        help="make this picture again; prompt, head and settings are read from its file",
    )
    parser.add_argument(
        "--face", type=int, metavar="N", help="number of the face in the photo, 0 the largest"
    )
    head = head_arguments.add_head_arguments(parser)
    head.add_argument(
        "--sequence",
        metavar="FILE",
        help=(
            "make --num-images pictures for each row of a table of heads: a CSV, or the "
            "sequence.json of `caphuman head`"
        ),
    )

    sampling = parser.add_argument_group("sampling")
    sampling_arguments.add_sampling_arguments(sampling)
    sampling.add_argument(
        "--control",
        metavar="NAME=PICTURE[:S]",
        action="append",
        help=(
            "a ControlNet of the model, its picture and its weight S (default 1); the "
            "picture `landmarks` shows the 68 landmarks of the requested heads as dots"
        ),
    )

    model = parser.add_argument_group("model")
    batch = "pictures at a time; default: 1 on a CPU or with --memory low or least, else 8"
    sampling_arguments.add_model_arguments(model, batch)

    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--out and --overwrite, of verbs that write pictures."""
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    output.add_argument(
        "--overwrite",
        action="store_true",
        help=("start at picture_00.png even if it exists; default: continue after the last number"),
    )


def add_combine_argument(parser: argparse.ArgumentParser, default: str | None) -> None:
    """--combine, of verbs that take several photos of one person."""
    parser.add_argument(
        "--combine",
        choices=("mean", "stack"),
        default=default,
        help=(
            "with several photos of the person: use the mean of their identity tokens "
            "(default), or stack them all"
        ),
    )


def run(args: argparse.Namespace) -> None:
    """Make the pictures that the arguments ask for, write them, and print their paths.

    Raises:
        CapHumanError: wrong arguments, photos or files.
    """
    console.quiet_libraries()
    console.check_batch(args.batch)
    console.check_writable(args.out)
    asked = _repeated(args) if args.repeat else _asked(args)
    write_pictures(args, lambda pipe, **more: pipe(**asked, **more))


def write_pictures(args: argparse.Namespace, make: Callable[..., Result]) -> None:
    """Load the model, make pictures, write them with their contact sheet, and print their paths.

    Args:
        args: of `generate` or `edit`.
        make: (pipe, *, progress, on_image, keep) → the result, see `Pipeline`.

    Raises:
        CapHumanError: wrong photos or files.
    """
    started = time.perf_counter()
    # Otherwise JAX first reserves three quarters of a GPU's memory, which takes 0.7 s of an H200.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms.start_device()
    import numpy as np

    from caphuman_jax.io.picture import PictureWriter  # brings NumPy, the others JAX
    from caphuman_jax.pipeline.contact_sheet import MOST
    from caphuman_jax.pipeline.loading import load

    with console.notices(), console.ProgressReporter() as progress:
        settings = {"dtype": args.dtype, "batch": args.batch, "memory": args.memory}
        pipe = load(args.model, **settings, kind=_kind(args))
        sampling_arguments.use_files(pipe, args)
        loaded = time.perf_counter() - started
        writer = PictureWriter(args.out, args.overwrite)
        with console.keeping(writer.paths, writer.folder):
            result = make(pipe, progress=progress, on_image=writer.write, keep=MOST)
        if args.repeat:
            repeat.compare(args.repeat, result.settings)
        sheet = writer.write_sheet(np.asarray(result.sheet()))
        console.check_there([*writer.paths, sheet], writer.folder)
    print(*writer.paths, sheet, sep="\n")
    seconds = {"start": loaded, **result.seconds, "in all": time.perf_counter() - started}
    print("; ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), file=sys.stderr)


def _kind(args: argparse.Namespace) -> tuple | None:
    """What the arguments say about the compiled programs that they need; None for --repeat, whose
    picture says it.
    """
    if args.repeat:
        return None
    fields = [name for name, spec in FIELDS.items() if spec.flag and not spec.per_image]
    counted = ("reference", "person", "control")
    counts = [len(getattr(args, name, None) or ()) for name in counted]
    return args.run.__module__, [getattr(args, name) for name in fields], counts


def _rows(path: str) -> list[dict[str, Any]]:
    """The heads of --sequence. Raises HeadError, SettingError."""
    from caphuman_jax.head import sequence  # brings JAX, which `--help` does not need

    rows = sequence.read_table(path)
    if rows is None:
        raise SettingError(
            f"--sequence takes a table of heads (.csv, .tsv or .json), not {path}; caphuman head "
            "--sequence makes sequence.json from a video or photos"
        )
    return rows


def _asked(args) -> dict[str, Any]:
    """Arguments of `create_request` as the command line has them."""
    if args.prompt is None:
        raise SettingError("--prompt is required")
    return {
        "prompt": args.prompt,
        "people": _people(args),
        "heads": None if args.sequence is None else _rows(args.sequence),
        "combine": args.combine or "mean",
        "controls": [_control(text) for text in args.control or ()],
        **sampling_arguments.sampling_given(args),
    }


def _people(args) -> list[dict[str, Any]]:
    """The people that are asked for: of each --person, or one of the options for one person."""
    if args.person:
        options = ("reference", "sequence", *head_arguments.OPTIONS)
        given = [name for name in options if getattr(args, name) is not None]
        if given:
            raise SettingError(
                f"with --person, each person has their own head: leave out {flag(given[0])}"
            )
        return [person_argument.parse(text) for text in args.person]
    if not args.reference:
        raise SettingError("--reference PHOTO is required: the photo of the person")
    check_head_photo_options(args)
    head = head_arguments.head_target(args, args.numbers)
    return [{"reference": args.reference, "face": args.face, "head": head}]


def check_head_photo_options(args: argparse.Namespace) -> None:
    """Raises SettingError for options that say how a head photo is used, without one."""
    if args.head_from is None:
        for name in head_arguments.OF_THE_PHOTO:
            if getattr(args, name) is not None:
                raise SettingError(f"{flag(name)} needs --head-from PHOTO")


def _control(text: str) -> dict[str, Any]:
    """ "openpose=body.png:0.8" → one of the request's controls."""
    name, equals, picture = text.partition("=")
    if not equals or not picture:
        raise SettingError(f"--control takes NAME=PICTURE or NAME=PICTURE:WEIGHT, not {text!r}")
    before, colon, scale = picture.rpartition(":")
    try:
        if colon:
            return {"name": name, "picture": before, "scale": float(scale)}
    except ValueError:  # the colon belongs to the file's name
        pass
    return {"name": name, "picture": picture}


def _repeated(args) -> dict[str, Any]:
    """Arguments of `create_request` as a picture of ours records them; its photos must be given
    again.
    """
    photos = ("head_from", "face", "head_face")
    options = (
        *sampling_arguments.sampling_given(args),
        "prompt",
        "combine",
        "sequence",
        *head_arguments.OPTIONS,
    )
    given = [name for name in options if name not in photos and getattr(args, name) is not None]
    if given:
        raise SettingError(
            f"--repeat takes its settings from the picture; leave out {flag(given[0])}"
        )
    made = repeat.recorded(args.repeat)
    if "edit" in made:
        raise SettingError(
            f"{args.repeat} is an edited photo; repeat it with caphuman edit --repeat"
        )
    try:
        return {
            "prompt": made["prompt"],
            "combine": made["combine"],
            **{name: made[name] for name in FIELDS if name in made and name != "denoise"},
            "num_images": 1,
            "first_image": made["index"],
            "people": _repeated_people(args, made["people"]),
            "controls": _repeated_controls(args, made["controls"]),
        }
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"{args.repeat} does not record all that is needed to repeat it ({error})"
        ) from error


def _repeated_controls(args, made) -> list[dict[str, Any]]:
    """The ControlNets of a picture with the photos that are given for them."""
    given = {control["name"]: control["picture"] for control in map(_control, args.control or ())}
    controls = []
    for control in made:
        name, picture = control["name"], control["picture"]
        if not isinstance(picture, str) and name not in given:
            raise SettingError(
                f"{args.repeat} was made with the ControlNet {name} and {picture['name']}; name "
                f"that picture with --control {name}=PICTURE"
            )
        picture = picture if isinstance(picture, str) else given[name]
        controls.append({"name": name, "picture": picture, "scale": control["scale"]})
    return controls


def _repeated_people(args, made) -> list[dict[str, Any]]:
    """The people of a picture with the photos that are given for them, in their order."""
    if args.person:
        given = [person_argument.parse(text) for text in args.person]
    else:
        given = [{"reference": args.reference, "head": {"photo": args.head_from}}]
    if len(given) != len(made):
        raise SettingError(
            f"{args.repeat} shows {len(made)} people; name their photos in the same order, with "
            "--person ref=PHOTO for each"
        )
    people = []
    for photos, person in zip(given, made):
        if not photos["reference"]:
            raise SettingError(f"name the photo of {person['reference']['name']} with --reference")
        how = "head=PHOTO in --person" if args.person else "--head-from"
        head = repeat.repeated_head(args.repeat, person, photos["head"].get("photo"), how)
        again = {"reference": photos["reference"], "face": person["reference"]["face"]}
        again |= {name: person[name] for name in ("prompt", "box") if name in person}
        if "mask" in person and photos.get("mask") is None:
            raise SettingError(f"name the mask {person['mask']['name']} with mask=FILE in --person")
        people.append({**again, "head": head, "mask": photos.get("mask")})
    return people


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
