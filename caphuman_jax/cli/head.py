"""`caphuman head`: a head from a photo or from numbers, edited, and shown; no picture of a person
is made.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import Any

from caphuman_jax.cli import console, head_arguments
from caphuman_jax.cli.head_files import save_gif, save_hints, save_png, write_file
from caphuman_jax.cli.head_sequence import GIF_SIDE, write_sequence
from caphuman_jax.diffusion.sampling_field import image_size
from caphuman_jax.errors import SettingError
from caphuman_jax.head.models.registry import HEADS
from caphuman_jax.io import checks

log = logging.getLogger("caphuman_jax")

_FROM, _SMALLEST, _LARGEST = ("reference", "numbers"), 16, 4096
_OF_SEQUENCES = {"every": 1, "fps": None, "smooth": 0.0, "missing": "interpolate"}
"""Options that only sequences have, with their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman head`."""
    parser.description = (
        "Fit a head to a photo, edit it, and write head.json (its numbers), hints.png (normals, "
        "albedo, render) and overlay.png (the fitted head over the photo)."
    )
    parser.add_argument(
        "--reference",
        metavar="PHOTO",
        help=(
            "photo or identity file of the person, which gives the head its shape and "
            "colors (without it, the file of --numbers does)"
        ),
    )
    parser.add_argument(
        "--sequence",
        metavar="FILE|DIR",
        help="many heads: a CSV of numbers, a video, a GIF or a folder of photos",
    )
    parser.add_argument(
        "--face", type=int, metavar="N", help="number of the face in the photo, 0 the largest"
    )
    head_arguments.add_head_arguments(parser)

    many = parser.add_argument_group("sequences (--take says what is taken from each frame)")
    many.add_argument(
        "--every", type=int, default=1, metavar="N", help="use every N-th frame, default 1"
    )
    many.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help="frames per second; default: the video's own, 25 for photos and tables",
    )
    many.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="smooth over this time (a two-sided mean); default 0: not at all",
    )
    many.add_argument(
        "--missing",
        choices=("interpolate", "error"),
        default="interpolate",
        help="what happens to frames without a face; default interpolate",
    )

    parser.add_argument(
        "--size", metavar="SIDE|WxH", help="pixels of the hints; default: the model's own"
    )
    parser.add_argument(
        "--npz",
        action="store_true",
        help="also write hints.npz: the nine channels as floats, hints (H, W, 9)",
    )
    parser.add_argument("--turntable", action="store_true", help="also write turntable.gif")
    parser.add_argument(
        "--obj", action="store_true", help="also write head.obj, with vertex colors"
    )
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER",
        help="the model whose head model and size are used, default mini",
    )
    parser.add_argument(
        "--head-model",
        metavar="NAME|PATH",
        help=f"another head model: {', '.join(HEADS)}, or a model's file or folder",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments ask for and print the paths. Raises CapHumanError."""
    console.quiet_libraries()
    _check(args)
    console.check_writable(args.out)
    with console.notices():
        read, person, head, wanted, size = _start(args)
        if args.sequence:
            paths = write_sequence(args, read, head, wanted, size)
        else:
            paths = _one(args, read, person, head, wanted, size)
    print(*paths, sep="\n")


def _check(args) -> None:
    if not any(getattr(args, name) for name in _FROM):
        raise SettingError("--reference PHOTO or --numbers FILE.json is required")
    if args.head_from is not None and args.sequence is not None:
        raise SettingError("the head is taken from --head-from or from --sequence, not both")
    if args.head_from is None and args.sequence is None:
        for name in head_arguments.OF_THE_PHOTO:
            if getattr(args, name) is not None:
                raise SettingError(
                    f"--{name.replace('_', '-')} needs --head-from PHOTO or --sequence"
                )
    if args.sequence is None:
        for name, default in _OF_SEQUENCES.items():
            if getattr(args, name) != default:
                raise SettingError(f"--{name} needs --sequence")
    checks.number("--smooth", args.smooth, 0, math.inf)


def _start(args):
    """What reads persons, the person of the reference (or None), the head with its numbers, the
    wanted head, and the size.
    """
    from caphuman_jax.head import head_json
    from caphuman_jax.head.hints import fit_to_aspect
    from caphuman_jax.head.models.registry import load_head
    from caphuman_jax.person.identity import Identifier
    from caphuman_jax.person.person_reader import PersonReader
    from caphuman_jax.pipeline.head_target import HeadTarget
    from caphuman_jax.runtime.compile_cache import keep_compiled
    from caphuman_jax.weights import model_folder

    path = model_folder.find_model(args.model)
    config = model_folder.read_config(path)
    keep_compiled()
    name = args.head_model or config.head
    model = load_head(name)
    wanted = HeadTarget.of(head_arguments.head_target(args))
    wanted.check(model)
    size = _size(args.size, config.image_size)
    numbers = head_json.read(args.numbers) if args.numbers else {}
    # Heads alone do not need the model's own recognizer.
    read = PersonReader(
        config.name,
        config.image_size,
        model,
        _estimator(path, config, name),
        Identifier(),
        Identifier(config).name,
    )
    person = read(args.reference, args.face) if args.reference else None
    if person is None:
        square = (config.image_size,) * 2
        head = head_json.build(model, numbers, square if size[0] == size[1] else size)
    else:
        head = head_json.apply(model, fit_to_aspect(person.head, *size), numbers)
    return read, person, head, wanted, size


def _estimator(path, config, name):
    """What estimates heads, where the model folder holds the networks that it needs."""
    import jax

    from caphuman_jax.head.models import registry as heads
    from caphuman_jax.io import metadata
    from caphuman_jax.models import registry
    from caphuman_jax.weights import model_folder

    source, _ = heads.find(name)
    stored = set(source.networks) & set(metadata.checksums(path))
    networks = {}
    for network in stored:
        graph, shapes = registry.abstract(config, only=[network])[network]
        params = model_folder.load_params(path, {network: shapes})[network]
        networks[network] = graph, jax.device_put(params)
    return heads.load_estimator(name, networks)


def _one(args, read, person, head, wanted, size) -> list[Path]:
    """A single head."""
    import numpy as np

    from caphuman_jax.head import mesh_export, visualize
    from caphuman_jax.head.hints import render_hints

    model = read.head_model
    source = None if wanted.photo is None else read(wanted.photo, wanted.photo_face)
    head = wanted.apply(model, head, source)
    hints = np.asarray(render_hints(model, head, *size))
    paths = []

    def write(name, how):
        path = args.out / name
        if args.numbers and path.exists() and path.samefile(args.numbers):
            log.warning("%s is left as it is, since the numbers were read from it", path)
            return
        write_file(path, how)
        paths.append(path)

    write("head.json", lambda path: path.write_text(_record(model, head, person), encoding="utf-8"))
    write("hints.png", lambda path: save_png(path, visualize.hint_strip(hints)))
    if person is not None:
        write(
            "overlay.png",
            lambda path: save_png(
                path, visualize.overlay(model, person.head, person.square, person.landmarks)
            ),
        )
    if args.npz:
        write("hints.npz", lambda path: save_hints(path, hints))
    if args.turntable:
        write(
            "turntable.gif",
            lambda path: save_gif(
                path, mesh_export.turntable(model, head, GIF_SIDE), 12, dither=False
            ),
        )
    if args.obj:
        write(
            "head.obj",
            lambda path: path.write_text(mesh_export.to_obj(model, head), encoding="utf-8"),
        )
    console.check_there(paths, args.out)
    print(_summary(model, head, person), file=sys.stderr)
    return paths


def _record(model, head, person) -> str:
    from caphuman_jax.head import head_json

    facts: dict[str, Any] = {}
    if person is not None:
        facts = {
            "reference": {"name": person.name, "sha256": person.sha256},
            "fit": {
                "confidence": round(person.confidence, 3),
                "median_landmark_error": round(float(person.head.residual), 4),
                "warnings": person.warnings(),
            },
        }
    return head_json.text(head_json.of(model, head, **facts))


def _summary(model, head, person) -> str:
    import numpy as np

    from caphuman_jax.head import editing

    yaw, pitch, roll = (
        round(float(angle), 1) + 0.0 for angle in np.asarray(head.angles)
    )  # no -0.0
    x, y, part = editing.position_of(model, head)
    strongest = sorted(
        editing.expression_numbers(model, head).items(), key=lambda pair: -abs(pair[1])
    )[:3]
    words = [f"yaw {yaw}°, pitch {pitch}°, roll {roll}°", f"at {x:.2f}, {y:.2f}, size {part:.2f}"]
    words += [", ".join(f"{name} {weight:.2f}" for name, weight in strongest if abs(weight) > 0.05)]
    if person is not None:
        words.append(
            f"fit {person.confidence:.2f} (landmarks off by "
            f"{100 * float(person.head.residual):.1f} % of the eye distance)"
        )
    return "; ".join(filter(None, words))


def _size(text, default) -> tuple[int, int]:
    """(height, width) in pixels."""
    sides = image_size(default if text is None else text)
    if not all(_SMALLEST <= side <= _LARGEST for side in sides):
        raise SettingError(
            f"--size {text}: a side, or WIDTHxHEIGHT, from {_SMALLEST} to {_LARGEST} pixels"
        )
    return sides[1], sides[0]
